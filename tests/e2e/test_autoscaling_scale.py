"""What scaling thousands of pods costs the operator. Their nodes are kwok's; scrapes go over the network all the same.

THRANITE_SCALE_PODS and THRANITE_SCALE_SECONDS choose a smaller run.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.cluster.access import COMMAND, LocalCluster, eventually, run
from tests.cluster.manifests import Object
from tests.e2e.conftest import SYSTEM, Operator, installed
from tests.e2e.test_serving import MODEL, NULL

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

PODS = int(os.environ.get("THRANITE_SCALE_PODS", "5000"))
SECONDS = float(os.environ.get("THRANITE_SCALE_SECONDS", "300"))
REPLICAS = 10
SERVICES = PODS // REPLICAS
INTERVAL = 15  # the default of intervalSeconds
LOOK_SECONDS = 5.0  # between two looks at the operator's metrics
NAMESPACE = "many"
PODS_A_NODE = 110
KWOK = "thranite.dev/kwok"


@dataclass(frozen=True)
class Look:
    """What the operator said of itself at one moment. `oldest_scrape`: seconds, over all services."""

    time: float
    started: float
    cpu_seconds: float
    resident_bytes: float
    scrapes: float
    errors: float
    reporting: float
    missing: float
    oldest_scrape: float
    reconciles: float


@pytest.fixture
def large() -> Iterator[Operator]:
    name = "test-scale"
    run(*COMMAND, "up", "--name", name, "--nodes", "1", "--qps", "1000", "--gpus", "0")
    try:
        cluster = LocalCluster(name)
        nodes = PODS // PODS_A_NODE + 5
        cluster.command("kwok", "nodes", "--count", str(nodes), "--pods", str(PODS_A_NODE))
        with installed(cluster) as operator:
            yield operator
    finally:
        run(*COMMAND, "down", "--name", name)


def inference_service(name: str) -> Object:
    spec = {
        "model": {"uri": f"file://{MODEL}"},
        "replicas": REPLICAS,
        "engine": {"extraArgs": NULL},
        "resources": {"gpus": 0, "cpu": "10m", "memory": "64Mi", "sharedMemory": "64Mi"},
        "scheduling": {"nodeSelector": {KWOK: "true"}, "tolerations": [{"key": KWOK, "operator": "Exists"}]},
        "autoscaling": {"minReplicas": REPLICAS, "maxReplicas": 2 * REPLICAS, "intervalSeconds": INTERVAL},
    }
    return {"apiVersion": "thranite.dev/v1alpha1", "kind": "InferenceService", "metadata": {"name": name}, "spec": spec}


def create_all(cluster: LocalCluster) -> None:
    cluster.kubectl("create", "namespace", NAMESPACE)
    for start in range(0, SERVICES, 100):
        items = [inference_service(f"s{number}") for number in range(start, min(start + 100, SERVICES))]
        listed = {"apiVersion": "v1", "kind": "List", "items": items}
        cluster.kubectl("create", "--namespace", NAMESPACE, "-f", "-", text=json.dumps(listed), timeout=600)


def look(cluster: LocalCluster) -> Look:
    pods = cluster.get("pods", "--namespace", SYSTEM, "-l", "app.kubernetes.io/name=thranite-operator")["items"]
    (address,) = [pod["status"]["podIP"] for pod in pods]
    url = f"http://{address}:8080/metrics"
    text = cluster.command("exec", "--", "curl", "--silent", "--show-error", "--fail", "--max-time", "20", url)
    families = text_string_to_metric_families(text)
    samples = [sample for family in families for sample in family.samples]

    def values(name: str, **labels: str) -> list[float]:
        return [item.value for item in samples if item.name == name and labels.items() <= item.labels.items()]

    def total(name: str, **labels: str) -> float:
        return sum(values(name, **labels))

    return Look(
        time=time.monotonic(),
        started=total("process_start_time_seconds"),
        cpu_seconds=total("process_cpu_seconds_total"),
        resident_bytes=total("process_resident_memory_bytes"),
        scrapes=total("thranite_operator_scrapes_total"),
        errors=total("thranite_operator_scrape_errors_total"),
        reporting=total("thranite_operator_autoscaler_pods", state="reporting"),
        missing=total("thranite_operator_autoscaler_pods", state="missing"),
        oldest_scrape=max(values("thranite_operator_autoscaler_oldest_scrape_seconds"), default=0.0),
        reconciles=total("thranite_operator_reconciles_total"),
    )


def wait_settled(cluster: LocalCluster) -> None:
    """Until all pods answer and hardly more is reconciled than comes around by itself."""
    looks: list[Look] = []

    def settled() -> bool:
        time.sleep(LOOK_SECONDS)
        looks.append(look(cluster))
        print(looks[-1], flush=True)
        if len(looks) < 2 or (looks[-1].reporting, looks[-1].missing) != (PODS, 0):
            return False
        return looks[-1].reconciles - looks[-2].reconciles <= max(5, SERVICES / 20)

    eventually(settled, timeout=1200, what=f"{PODS} pods ready and scraped, and little left to reconcile")


def watch(cluster: LocalCluster) -> list[Look]:
    looks = [look(cluster)]
    while looks[-1].time - looks[0].time < SECONDS:
        time.sleep(LOOK_SECONDS)
        looks.append(look(cluster))
        print(looks[-1], flush=True)
    return looks


def described(looks: list[Look]) -> str:
    first, last = looks[0], looks[-1]
    wall = last.time - first.time
    cpu = last.cpu_seconds - first.cpu_seconds
    return (
        f"{PODS} pods of {SERVICES} services, {wall:.1f} s of wall time: {cpu:.1f} s of CPU time "
        f"({cpu / wall:.3f} of a core), {last.reconciles - first.reconciles:.0f} reconciles, "
        f"{last.scrapes - first.scrapes:.0f} scrapes, "
        f"{last.errors - first.errors:.0f} failed, oldest scrape {max(seen.oldest_scrape for seen in looks):.1f} s, "
        f"{last.resident_bytes / 2**20:.0f} MiB"
    )


def test_the_operator_needs_half_a_core_at_most(
    large: Operator, record_property: Callable[[str, object], None]
) -> None:
    assert isinstance(large.cluster, LocalCluster)
    create_all(large.cluster)
    wait_settled(large.cluster)
    looks = watch(large.cluster)
    record_property("summary", described(looks))
    print(described(looks), flush=True)
    first, last = looks[0], looks[-1]
    assert {(seen.started, seen.reporting, seen.missing) for seen in looks} == {(first.started, PODS, 0)}
    assert last.cpu_seconds - first.cpu_seconds <= 0.5 * (last.time - first.time)
    # Between two looks a scrape may have been older by the time between them.
    gap = max(after.time - before.time for before, after in pairwise(looks))
    assert max(seen.oldest_scrape for seen in looks) + gap <= 3 * INTERVAL
    items = large.cluster.get("infs", "--namespace", NAMESPACE)["items"]
    assert {item["spec"]["replicas"] for item in items} == {REPLICAS}
