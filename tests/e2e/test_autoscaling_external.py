"""Mode External: a HorizontalPodAutoscaler writes /scale, by the summed queue, and the operator only follows."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.access import ROOT, LocalCluster, Namespace, eventually
from tests.cluster.aggregation import CERTIFICATE, external_metrics
from tests.e2e.conftest import Services
from tests.e2e.load import Clients, turns, wished
from tests.e2e.test_serving import MODEL, NULL, writes

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
EXAMPLE = ROOT / "examples" / "external-hpa.yaml"
HPA = "system:serviceaccount:kube-system:horizontal-pod-autoscaler"


@pytest.fixture
def metrics(local: LocalCluster, namespace: Namespace, tmp_path: Path) -> Iterator[None]:
    command = ("python", str(ROOT / "dev" / "queue_metrics.py"), "--certificate", CERTIFICATE)
    with external_metrics(local, namespace, tmp_path, *command):
        yield


def spec() -> dict[str, Any]:
    """Streams of two seconds, four at once in a replica; `replicas` is nobody's but the autoscaler's."""
    return {
        "model": {"uri": f"file://{MODEL}"},
        "engine": {"maxSequences": 4, "extraArgs": [*NULL, "--null-step-seconds=0.05"]},
        "resources": {"gpus": 0, "sharedMemory": "64Mi"},
        "drain": {"timeoutSeconds": 20},
        "autoscaling": {"mode": "External"},
    }


def autoscaler() -> dict[str, Any]:
    """The example's, for service x: 7 requests a replica, so 20 clients need three and 4 need one; quick to shrink."""
    found: dict[str, Any] = next(
        body for body in yaml.safe_load_all(EXAMPLE.read_text()) if body["kind"] == "HorizontalPodAutoscaler"
    )
    found["metadata"]["name"] = found["spec"]["scaleTargetRef"]["name"] = "x"
    (metric,) = (item["external"] for item in found["spec"]["metrics"])
    metric["metric"]["selector"]["matchLabels"]["service"] = "x"
    metric["target"]["averageValue"] = "7"
    found["spec"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"] = 10
    return found


def scale_writers(local: LocalCluster, namespace: Namespace) -> Counter[str]:
    """Who wrote how many replicas, or anything else of an InferenceService but its status, after kubectl's apply."""
    return Counter(
        entry["user"]["username"]
        for entry in local.audit()
        if entry.get("objectRef", {}).get("namespace") == namespace.name
        and entry["objectRef"]["resource"] == "inferenceservices"
        and entry["objectRef"].get("subresource") != "status"
        and entry["verb"] in ("update", "patch")
        and entry["stage"] == "ResponseComplete"
        and entry["responseStatus"]["code"] < 300
    )


def watch_sizes(
    namespace: Namespace, enough: Callable[[tuple[int, int]], bool], seconds: float
) -> list[tuple[int, int]]:
    """(wished, the Deployment's) at each change, until one is `enough`."""
    seen: list[tuple[int, int]] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end and not (seen and enough(seen[-1])):
        now = (wished(namespace), int(namespace.get("deployment", "x")["spec"]["replicas"]))
        seen += [now] if not seen or seen[-1] != now else []
        time.sleep(0.3)
    return seen


@pytest.mark.usefixtures("metrics")
def test_an_hpa_scales_and_the_operator_follows(services: Services, namespace: Namespace, local: LocalCluster) -> None:
    services.apply(**spec())
    services.wait("Ready")
    namespace.apply(autoscaler())
    eventually(lambda: active(namespace), what="an autoscaler that reads the queue")
    clients = Clients(namespace, few=4)
    clients.start()
    clients.more()
    seen = watch_sizes(namespace, lambda sizes: sizes == (3, 3), seconds=90)
    eventually(lambda: namespace.get("infs", "x")["status"]["readyReplicas"] == 3, what="three replicas")
    time.sleep(10)  # with streams on all of them
    clients.less()
    seen += watch_sizes(namespace, lambda sizes: sizes == (1, 1), seconds=120)
    eventually(lambda: len(services.pods()) == 1, what="two pods less")
    good, bad, errors = clients.stop()
    written, deployed = scale_writers(local, namespace), operators_patches(local, namespace)
    events = namespace.events("SuccessfulRescale")
    print(f"sizes {seen}; {good} requests answered, {bad} not")
    print(f"scale written by {dict(written)}, deployment patched {deployed}\n{events}")
    assert max(seen)[0] == 3, seen
    assert turns([wish for wish, _ in seen]) == 1, seen
    assert turns([made for _, made in seen]) == 1, seen
    assert seen[-1] == (1, 1), seen
    assert good > 50
    assert bad == 0, errors
    assert set(written) == {HPA}, written
    assert set(deployed) == {"deployments"}, deployed
    assert 3 <= deployed["deployments"] <= 1 + written[HPA], "made once, then at most once for each of the HPA's words"
    assert services.condition("ScalingActive") == ("", "", ""), "the operator says nothing of what it does not do"


def active(namespace: Namespace) -> bool:
    conditions = namespace.get("hpa", "x").get("status", {}).get("conditions", [])
    return any((item["type"], item["status"]) == ("ScalingActive", "True") for item in conditions)


def operators_patches(local: LocalCluster, namespace: Namespace) -> dict[str, int]:
    """What the operator wrote that holds a number of replicas: Deployments, and InferenceServices but their status."""
    refs = [entry["objectRef"] for entry in writes(local, namespace)]
    held = [ref for ref in refs if ref["resource"] == "deployments"]
    held += [ref for ref in refs if ref["resource"] == "inferenceservices" and ref.get("subresource") != "status"]
    return dict(Counter("/".join([ref["resource"], *filter(None, [ref.get("subresource")])]) for ref in held))
