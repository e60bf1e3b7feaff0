"""`thranite download` against a hub on localhost: as a process, because it must survive being killed."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.fake_hub import COMMIT, FakeHub, fake_hub
from tests.support.waiting import wait_for
from thranite.errors import ExitCode
from thranite.loader.download_marker import NAME as MARKER
from thranite.loader.hub_listing import select_files

MIB = 1024**2
WEIGHTS = bytes(range(256)) * (6 * 4096)  # 6 MiB
FILES = {
    "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"hello",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"pickle",
    "modeling_custom.py": b"code",
    "original/params.json": b"{}",
}
WANTED = {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"}


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub(FakeHub("org/model", FILES)) as served:
        served.release.set()
        yield served


@pytest.fixture
def start(hub: FakeHub, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start `thranite download org/model --to <tmp>/model …`."""

    def begin(*options: str, **environment: str) -> subprocess.Popen[str]:
        env = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, "-m", "thranite", "download", "org/model", "--to", str(tmp_path / "model"), *options]
        return subprocess.Popen(
            command, env=env | environment, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
        )

    return begin


def heed_interrupts() -> None:
    """Shells start what runs in the background, as these tests may, with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def bytes_below(directory: Path) -> int:
    size = 0
    for path in directory.rglob("*.partial"):
        with suppress(FileNotFoundError):  # it is whole by now
            size += path.stat().st_size
    return size


Start = Callable[..., subprocess.Popen[str]]


def test_fetches_what_a_model_needs_and_nothing_else(hub: FakeHub, start: Start, tmp_path: Path) -> None:
    code, errors = end(start())
    assert code == 0, errors
    model = tmp_path / "model"
    assert {path.name for path in model.iterdir() if not path.name.startswith(".")} == WANTED
    assert (model / "model.safetensors").read_bytes() == WEIGHTS
    marker = json.loads((model / MARKER).read_text())
    assert (marker["model"], marker["commit"]) == ("org/model", COMMIT)
    assert marker["files"] == {name: len(FILES[name]) for name in WANTED}
    assert not list(model.glob(".incomplete-*"))
    asked = len(hub.seen)
    assert end(start())[0] == 0
    assert len(hub.seen) == asked, "a finished directory asks the hub nothing"
    assert end(start(HF_HUB_OFFLINE="1"))[0] == 0


def test_a_damaged_directory_is_repaired(hub: FakeHub, start: Start, tmp_path: Path) -> None:
    assert end(start())[0] == 0
    damaged = tmp_path / "model" / "model.safetensors"
    damaged.write_bytes(WEIGHTS[:1000])
    assert end(start())[0] == 0
    assert damaged.read_bytes() == WEIGHTS
    assert len(hub.transfers("config.json")) == 1, "what was whole is not fetched again"


def test_a_broken_transfer_resumes_where_it_broke(hub: FakeHub, start: Start, tmp_path: Path) -> None:
    hub.break_after["model.safetensors"] = [4 * MIB]
    code, errors = end(start())
    assert code == 0, errors
    first, second = hub.transfers("model.safetensors")
    assert first.start is None
    assert second.start is not None
    assert 3 * MIB <= second.start <= 4 * MIB
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == WEIGHTS


def test_a_damaged_transfer_is_fetched_again(hub: FakeHub, start: Start, tmp_path: Path) -> None:
    hub.damage.add("model.safetensors")
    code, errors = end(start())
    assert code == 0, errors
    assert "came damaged" in errors
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == WEIGHTS


def test_a_killed_download_resumes(hub: FakeHub, start: Start, tmp_path: Path) -> None:
    hub.release.clear()
    hub.break_after["model.safetensors"] = [4 * MIB]
    process = start()
    wait_for(lambda: bytes_below(tmp_path) >= 3 * MIB, "three MiB")
    process.kill()
    end(process)
    assert not (tmp_path / "model" / MARKER).exists()
    assert not (tmp_path / "model" / "model.safetensors").exists()
    assert end(start())[0] == 0
    resumed = hub.transfers("model.safetensors")[-1].start
    assert resumed is not None
    assert 3 * MIB <= resumed <= 4 * MIB
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == WEIGHTS


def test_an_interrupted_download_ends_before_its_files(hub: FakeHub, start: Start, tmp_path: Path) -> None:
    hub.slow.add("model.safetensors")
    process = start()
    wait_for(lambda: bytes_below(tmp_path) >= MIB // 2, "half a MiB")
    process.send_signal(signal.SIGINT)
    code, errors = end(process)
    assert (code, errors.splitlines()[-1]) == (130, "thranite: error: interrupted")
    assert MIB // 2 <= bytes_below(tmp_path) < 6 * MIB
    hub.slow.clear()
    assert end(start())[0] == 0
    assert hub.transfers("model.safetensors")[-1].start is not None
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == WEIGHTS


def test_a_container_s_first_process_ends_when_told(hub: FakeHub, tmp_path: Path) -> None:
    """The kernel drops signals that process 1 has no handler for. The hub is silent here, so nothing else ends it."""
    hub.release.clear()
    hub.break_after["model.safetensors"] = [MIB]
    first = "import os, sys; os.getpid = lambda: 1; from thranite.cli.main import main; sys.exit(main(sys.argv[1:]))"
    env = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    arguments = ["download", "org/model", "--to", str(tmp_path / "model")]
    process = subprocess.Popen([sys.executable, "-c", first, *arguments], env=env, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: bytes_below(tmp_path) == MIB, "one MiB")
    process.terminate()
    assert end(process)[0] == 143


def test_a_second_download_waits_for_the_first(hub: FakeHub, start: Start, tmp_path: Path) -> None:
    hub.release.clear()
    hub.break_after["model.safetensors"] = [4 * MIB]
    first = start()
    wait_for(lambda: bytes_below(tmp_path) >= 3 * MIB, "three MiB")
    second = start()
    assert second.stderr is not None
    assert "waiting" in second.stderr.readline()
    hub.release.set()
    assert end(first)[0] == 0
    assert end(second)[0] == 0
    assert len(hub.transfers("config.json")) == 1


def test_progress_is_on_the_admin_port(hub: FakeHub, start: Start, tmp_path: Path) -> None:
    hub.release.clear()
    hub.break_after["model.safetensors"] = [4 * MIB]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = int(taken.getsockname()[1])
    process = start("--admin-host", "127.0.0.1", "--admin-port", str(port))
    wait_for(lambda: bytes_below(tmp_path) >= 3 * MIB, "three MiB")

    def get(path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", path)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, text

    def metric(name: str) -> float:
        lines = [line for line in get("/metrics")[1].splitlines() if line.startswith(name + "{")]
        return float(lines[0].split()[-1])

    assert get("/startupz")[0] == 503
    assert get("/livez")[0] == 200
    assert get("/nowhere")[0] == 404
    total = sum(len(FILES[name]) for name in WANTED)
    assert metric("thranite_download_total_bytes") == total
    assert 3 * MIB <= metric("thranite_download_bytes") < total
    hub.release.set()
    assert end(process)[0] == 0


@pytest.mark.parametrize(
    ("options", "environment", "code", "said"),
    [
        ((), {"HF_HUB_OFFLINE": "1"}, ExitCode.MODEL_NOT_FOUND, "HF_HUB_OFFLINE"),
        (("--revision", "nowhere"), {}, ExitCode.MODEL_NOT_FOUND, "no such branch"),
        (("--token-file", "/does/not/exist"), {}, ExitCode.CONFIG, "--token-file"),
    ],
)
def test_refusals_name_their_cause(
    start: Start, options: tuple[str, ...], environment: dict[str, str], code: ExitCode, said: str
) -> None:
    status, errors = end(start(*options, **environment))
    assert status == code
    assert said in errors
    assert "Traceback" not in errors


def test_a_gated_model_needs_its_token(hub: FakeHub, start: Start, tmp_path: Path) -> None:
    hub.token = "secret"
    code, errors = end(start(HF_TOKEN=""))
    assert code == ExitCode.MODEL_NOT_FOUND
    assert "HF_TOKEN" in errors
    token = tmp_path / "token"
    token.write_text("secret\n")
    assert end(start("--token-file", str(token)))[0] == 0


NEXT = "f" * 40
RETRAINED = WEIGHTS[::-1]  # of the same size


def retrain(hub: FakeHub) -> None:
    """The branch goes on to another commit; the weights are others, and the template is as it was."""
    hub.commit = NEXT
    hub.revisions = ("main", NEXT)
    hub.files = {
        **FILES,
        "config.json": FILES["config.json"].replace(b"Llama", b"Mamba"),
        "model.safetensors": RETRAINED,
    }


def assert_retrained(model: Path) -> None:
    assert (model / "model.safetensors").read_bytes() == RETRAINED
    assert b"Mamba" in (model / "config.json").read_bytes()
    assert json.loads((model / MARKER).read_text())["commit"] == NEXT


def test_files_of_another_commit_are_not_taken_for_this_one_s(hub: FakeHub, start: Start, tmp_path: Path) -> None:
    """Of the same size, in a directory that lacks one file by now."""
    model = tmp_path / "model"
    assert end(start())[0] == 0
    (model / "tokenizer.json").unlink()
    retrain(hub)
    assert end(start())[0] == 0
    assert_retrained(model)


@pytest.mark.parametrize("moved", [0, 1, 2, 4])
def test_a_move_that_was_interrupted_ends_with_its_own_files(
    hub: FakeHub, start: Start, tmp_path: Path, moved: int
) -> None:
    model = tmp_path / "model"
    assert end(start())[0] == 0
    before = {name: (model / name).read_bytes() for name in WANTED}
    (model / "tokenizer.json").unlink()
    retrain(hub)
    assert end(start())[0] == 0
    work = model / f".incomplete-{NEXT[:12]}"  # as it was when the move began, `moved` files ago
    work.mkdir()
    (work / ".moving").touch()
    (model / MARKER).unlink()
    for name in sorted(WANTED)[moved:]:
        (model / name).rename(work / name)
        (model / name).write_bytes(before[name])
    asked = len(hub.transfers("model.safetensors"))
    assert end(start())[0] == 0
    assert_retrained(model)
    assert len(hub.transfers("model.safetensors")) == asked, "nothing is fetched again"


def test_a_move_that_another_commit_s_undid_is_not_taken_up(hub: FakeHub, start: Start, tmp_path: Path) -> None:
    """Killed in the move of one commit, then in that of another; and the branch is back at the first."""
    model = tmp_path / "model"
    assert end(start())[0] == 0
    former = model / f".incomplete-{COMMIT[:12]}"
    former.mkdir()
    (former / ".moving").touch()
    (model / MARKER).unlink()
    retrain(hub)
    assert end(start())[0] == 0
    latter = model / f".incomplete-{NEXT[:12]}"
    for work in (former, latter):
        work.mkdir(exist_ok=True)
    (latter / ".moving").touch()
    (model / MARKER).unlink()
    hub.commit, hub.revisions, hub.files = COMMIT, ("main", COMMIT), FILES
    assert end(start())[0] == 0
    assert (model / "model.safetensors").read_bytes() == WEIGHTS
    assert b"Llama" in (model / "config.json").read_bytes()


def test_large_files_that_stay_the_same_are_not_fetched_again(hub: FakeHub, start: Start, tmp_path: Path) -> None:
    assert end(start())[0] == 0
    (tmp_path / "model" / "tokenizer.json").unlink()
    hub.commit, hub.revisions = NEXT, ("main", NEXT)
    assert end(start())[0] == 0
    assert len(hub.transfers("model.safetensors")) == 1
    assert len(hub.transfers("config.json")) == 2


def test_another_model_in_the_directory_is_left_alone(start: Start, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    code, errors = end(start())
    assert code == ExitCode.CONFIG
    assert "did not put there" in errors
    (model / "config.json").unlink()
    assert end(start())[0] == 0
    code, errors = end(start("--revision", COMMIT))
    assert code == ExitCode.CONFIG
    assert COMMIT in errors


def test_files_are_chosen_by_name() -> None:
    names = ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "consolidated.safetensors"]
    names += ["tokenizer.model", "merges.txt", "run.py", "model.bin", "onnx/config.json", "README.md"]
    assert select_files(names) == [
        "merges.txt",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.model",
    ]
