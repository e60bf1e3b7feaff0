"""Up and down leave nothing behind, however a cluster ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import manifests
from tests.cluster.access import COMMAND, LocalCluster, Namespace, eventually, run

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(os.environ.get("CLUSTER") == "current", reason="is about clusters that the tests start"),
]
NAME = f"life-{os.getpid()}"
TIMES = 10
# Where programs of a cluster would leave something on a machine if they could.
WATCHED_FOLDERS = ("/etc", "/opt", "/run", "/tmp", "/usr/libexec", "/var/lib", "/var/log", "/var/run", str(Path.home()))
OURS = re.compile(r"kube|containerd|cni|etcd|hostpath")


def snapshot() -> dict[str, set[str]]:
    """What a cluster might leave; of processes, groups and folders only those that look like a cluster's."""
    return {
        "processes": {text for text in process_lines() if NAME in text},
        "network namespaces": set(run("ip", "netns", "list").split()),
        "links": set(re.findall(r"^\d+: ([^:]+):", run("ip", "link"), re.MULTILINE)),
        "rules": {line for line in run("iptables-save").splitlines() if not line.startswith(("#", ":"))},
        "mounts": {line for line in Path("/proc/self/mounts").read_text().splitlines() if NAME in line},
        "groups": {str(path) for path in group_folders() if OURS.search(path.name) or NAME in path.name},
        "folders": {str(path) for top in WATCHED_FOLDERS for path in entries(Path(top)) if OURS.search(path.name)},
        "clusters": {str(path) for path in entries(clusters_folder()) if path.name.startswith(NAME)},
    }


def clusters_folder() -> Path:
    return Path(os.environ.get("THRANITE_CACHE") or Path.home() / ".cache" / "thranite") / "clusters"


def entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def group_folders() -> Iterator[Path]:
    for folder, names, _ in os.walk("/sys/fs/cgroup"):
        yield from (Path(folder, name) for name in names)


def process_lines() -> Iterator[str]:
    """Command line and control groups: a shim's child may have nothing of the cluster in the one, but in the other."""
    for entry in entries(Path("/proc")):
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                yield f"{(entry / 'cmdline').read_bytes()!r} {(entry / 'cgroup').read_text()}"
            except (FileNotFoundError, ProcessLookupError):
                continue


def start(*more: str) -> subprocess.Popen[str]:
    return subprocess.Popen([*COMMAND, "up", "--name", NAME, *more], stdout=subprocess.PIPE, text=True)


def wait_for_step(process: subprocess.Popen[str], step: str) -> None:
    assert process.stdout is not None
    assert any(step in line for line in process.stdout)


def run_a_pod() -> None:
    cluster = LocalCluster(NAME)
    space = Namespace(cluster, "default")
    space.apply(manifests.claim("data"))
    volume = {"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]}
    mount = [{"name": "data", "mountPath": "/data"}]
    spec = manifests.server_spec(cluster.image, volumeMounts=mount, pod=volume, resources=manifests.gpus(1))
    eventually(lambda: cluster.get("serviceaccount", "default"))
    space.apply(manifests.pod("web", spec))
    space.wait_ready("web")


@pytest.fixture
def before() -> Iterator[dict[str, set[str]]]:
    yield snapshot()
    run(*COMMAND, "down", "--name", NAME)


def left(before: dict[str, set[str]]) -> dict[str, set[str]]:
    now = snapshot()
    return {kind: now[kind] - before[kind] for kind in now if now[kind] - before[kind]}


def assert_nothing_left(before: dict[str, set[str]]) -> None:
    deadline = time.monotonic() + 20
    while found := left(before):
        assert time.monotonic() < deadline, f"left behind: {found}"
        time.sleep(0.1)


@pytest.mark.slow
def test_ten_times_up_and_down_leave_nothing(before: dict[str, set[str]]) -> None:
    for number in range(TIMES):
        began = time.monotonic()
        run(*COMMAND, "up", "--name", NAME, "--nodes", "2")
        up = time.monotonic() - began
        run_a_pod()
        began = time.monotonic()
        run(*COMMAND, "down", "--name", NAME)
        print(f"{number}: up {up:.1f} s, down {time.monotonic() - began:.1f} s")
        assert left(before) == {}
        assert up < 15


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["killed", "ctrl-c"])
def test_an_up_that_ends_early_leaves_nothing(before: dict[str, set[str]], number: signal.Signals) -> None:
    process = start()
    wait_for_step(process, "nodes")
    process.send_signal(number)
    process.communicate(timeout=30)
    assert_nothing_left(before)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["certificates", "control plane", "nodes"])
@pytest.mark.parametrize("pause", [0.0, 0.5, 1.5])
def test_an_up_that_is_killed_at_any_moment_leaves_nothing(
    before: dict[str, set[str]], step: str, pause: float
) -> None:
    process = start("--nodes", "2")
    wait_for_step(process, step)
    time.sleep(pause)
    process.kill()
    process.communicate(timeout=30)
    assert_nothing_left(before)


@pytest.mark.slow
def test_a_cluster_whose_keeper_was_killed_is_swept(before: dict[str, set[str]]) -> None:
    run(*COMMAND, "up", "--name", NAME)
    run_a_pod()
    keeper = next(pid for pid in all_pids() if is_keeper(pid))
    os.kill(keeper, signal.SIGKILL)
    eventually(lambda: not {line for line in process_lines() if NAME in line}, what="the end of all processes")
    run(*COMMAND, "down", "--name", NAME)
    assert_nothing_left(before)


@pytest.mark.slow
def test_a_cache_in_var_is_seen_by_nodes_that_have_one_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    tools = (clusters_folder().parent / "tools").resolve()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        monkeypatch.setenv("THRANITE_CACHE", folder)
        Path(folder, "tools").symlink_to(tools)
        run(*COMMAND, "up", "--name", NAME)
        try:
            run_a_pod()
        finally:
            run(*COMMAND, "down", "--name", NAME)
        assert {entry.name for entry in entries(Path(folder))} == {"tools", "clusters"}
        assert entries(Path(folder, "clusters")) == []


def all_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def is_keeper(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return "_keep" in words and NAME in words


def test_what_is_missing_is_said_politely() -> None:
    # Nobody, but one who may read the interpreter wherever it lies.
    reads = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
    nobody = ("setpriv", "--reuid=65534", "--clear-groups", *reads)
    done = subprocess.run([*nobody, *COMMAND, "up"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: a local cluster cannot run on this machine:\n  it needs root")


def test_a_patience_that_is_no_number_is_refused() -> None:
    wrong = {**os.environ, "THRANITE_CLUSTER_PATIENCE": "very"}
    done = subprocess.run([*COMMAND, "up", "--name", NAME], env=wrong, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "THRANITE_CLUSTER_PATIENCE must be a number from 1 to 1000, not 'very'" in done.stderr
