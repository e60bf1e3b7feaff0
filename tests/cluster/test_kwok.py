"""Fake nodes: pods without processes that answer scrapes all the same."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster import manifests
from tests.cluster.access import COMMAND, LocalCluster, Namespace, eventually, run

pytestmark = pytest.mark.cluster
LABEL = "thranite.dev/kwok"
DEPLOYMENTS = 1000
PODS_EACH = 5
PODS_A_NODE = 110


def fake_deployment(name: str, replicas: int) -> manifests.Object:
    tolerated = [{"key": LABEL, "operator": "Exists"}]
    chosen = {"nodeSelector": {LABEL: "true"}, "tolerations": tolerated, "automountServiceAccountToken": False}
    return manifests.deployment(name, replicas, manifests.pod_spec("localhost/pretended:1", pod=chosen))


@pytest.fixture
def fake_nodes(local: LocalCluster) -> Iterator[None]:
    local.command("kwok", "nodes", "--count", "2")
    yield
    local.command("kwok", "nodes", "--count", "0")


def scrape(local: LocalCluster, address: str) -> str:
    """From the control plane's network, and from a node's: an answer comes in either case."""
    answers = []
    for place in ((), ("--node", "node0")):
        url = f"http://{address}:8001/metrics"
        answers.append(local.command("exec", *place, "--", "curl", "--silent", "--show-error", "--max-time", "5", url))
    assert answers[0] == answers[1]
    return answers[0]


@pytest.mark.usefixtures("fake_nodes")
def test_fake_pods_run_and_answer_scrapes(local: LocalCluster, namespace: Namespace) -> None:
    namespace.apply(fake_deployment("web", 6))
    namespace.wait_rolled("web")
    first, second = (pod["status"]["podIP"] for pod in namespace.pods("web")[:2])
    assert first != second
    assert 'thranite_requests_waiting{model_name="kwok"} 0.0' in scrape(local, first)
    local.command("kwok", "metrics", "--ip", first, text="thranite_requests_waiting 7\n")
    assert scrape(local, first) == "thranite_requests_waiting 7\n"
    assert "7" not in scrape(local, second).split()
    assert json.loads(local.command("kwok", "state"))["requests"]["GET /metrics"] >= 4
    namespace.delete_pods()


@pytest.fixture
def large() -> Iterator[LocalCluster]:
    name = "test-large"
    run(*COMMAND, "up", "--name", name, "--qps", "1000", "--gpus", "0")
    yield LocalCluster(name)
    run(*COMMAND, "down", "--name", name)


def resident_megabytes(cluster: LocalCluster) -> dict[str, int]:
    """Of each program of the cluster, by name: their command lines hold the cluster's folder or the tools'."""
    found: dict[str, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode().split("\0")
            status = (entry / "status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if str(cluster.kubeconfig.parent) in " ".join(words):
            resident = next((line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")), "0")
            name = Path(words[0]).name
            found[name] = found.get(name, 0) + int(resident) // 1024
    return found


@pytest.mark.slow
def test_thousands_of_pods(large: LocalCluster, record_property: Callable[[str, object], None]) -> None:
    wanted = DEPLOYMENTS * PODS_EACH
    large.command("kwok", "nodes", "--count", str(wanted // PODS_A_NODE + 5), "--pods", str(PODS_A_NODE))
    large.kubectl("create", "namespace", "many")
    began = time.monotonic()
    for start in range(0, DEPLOYMENTS, 100):
        items = [fake_deployment(f"d{number}", PODS_EACH) for number in range(start, start + 100)]
        listed = {"apiVersion": "v1", "kind": "List", "items": items}
        large.kubectl("create", "--namespace", "many", "-f", "-", text=json.dumps(listed), timeout=600)

    def running() -> int:
        path = "/api/v1/namespaces/many/pods?fieldSelector=status.phase%3DRunning&limit=1"
        listed = json.loads(large.kubectl("get", "--raw", path))
        return len(listed["items"]) + int(listed["metadata"].get("remainingItemCount", 0))

    def all_ready() -> bool:
        items = large.get("deployments", "--namespace", "many")["items"]
        ready = sum(item["status"].get("readyReplicas", 0) for item in items)
        print(f"{time.monotonic() - began:.0f} s: {ready} ready", flush=True)
        time.sleep(5)
        return bool(ready == wanted)

    eventually(all_ready, timeout=1500, what=f"{wanted} pods ready")
    seconds = time.monotonic() - began
    memory = resident_megabytes(large)
    summary = f"{wanted} pods of {DEPLOYMENTS} Deployments in {seconds:.0f} s; {sum(memory.values())} MB: {memory}"
    record_property("summary", summary)
    print(summary)
