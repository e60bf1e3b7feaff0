"""Replicas by load on a real cluster: `--device null` runtimes, kube-proxy, real scrapes."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.cluster.access import LocalCluster, Namespace, eventually
from tests.e2e.conftest import SYSTEM, Operator, Services
from tests.e2e.load import Clients, Sizes, turns, wished
from tests.e2e.test_serving import MODEL, NULL

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def behavior(**scale_up: int) -> dict[str, Any]:
    return {
        "scaleUp": {"periodSeconds": 5, **scale_up},
        "scaleDown": {"stabilizationWindowSeconds": 5, "pods": 4, "periodSeconds": 5},
    }


def spec(**autoscaling: Any) -> dict[str, Any]:
    """Streams of two seconds: at a faster pace the clients would wait for a processor more than for replicas."""
    fields = {"maxReplicas": 4, "targetQueueDepth": 2, "intervalSeconds": 1, "behavior": behavior(), **autoscaling}
    return {
        "model": {"uri": f"file://{MODEL}"},
        "engine": {"maxSequences": 4, "extraArgs": [*NULL, "--null-step-seconds=0.05"]},
        "resources": {"gpus": 0, "sharedMemory": "64Mi"},
        "drain": {"timeoutSeconds": 20},
        "autoscaling": fields,
    }


def ready_replicas(namespace: Namespace) -> int:
    return int(namespace.get("infs", "x")["status"].get("readyReplicas", 0))


def operator_pod(local: LocalCluster) -> Any:
    """The one that is not ending."""
    items = local.get("pods", "--namespace", SYSTEM, "-l", "app.kubernetes.io/name=thranite-operator")["items"]
    (found,) = [item for item in items if "deletionTimestamp" not in item["metadata"]]
    return found


def kill_operator(local: LocalCluster) -> None:
    local.command("kill", f"pod/{SYSTEM}/{operator_pod(local)['metadata']['name']}")


def test_load_adds_replicas_and_takes_them_back(services: Services, namespace: Namespace, local: LocalCluster) -> None:
    services.apply(**spec())
    services.wait("Ready")
    clients, sizes = Clients(namespace), Sizes(lambda: wished(namespace))
    clients.start()
    assert sizes.watch(10) == {1}, "one client needs no more"
    clients.more()
    eventually(lambda: sizes.now() == 4, timeout=60, what="four replicas wished")
    eventually(lambda: ready_replicas(namespace) == 4, what="four replicas")
    kill_operator(local)
    assert sizes.watch(5) == {4}
    clients.less()
    eventually(lambda: sizes.now() == 1, timeout=150, what="one replica again")
    eventually(lambda: ready_replicas(namespace) == 1 == len(services.pods()), what="three pods less")
    good, bad, errors = clients.stop()
    print(f"sizes {sizes.seen}, {good} requests answered, {bad} not")
    assert (bad, turns(sizes.seen)) == (0, 1), (errors, sizes.seen)
    assert good > 100
    events = namespace.events("SuccessfulRescale")
    assert any(message.startswith("1 → ") for message in events), events
    assert any("→ 1: " in message for message in events), events


def test_scrapes_that_get_through_to_nobody_change_nothing(
    services: Services, namespace: Namespace, operator: Operator, local: LocalCluster
) -> None:
    """Only the operator's way to the admin ports is closed: pods are ready, and nothing says that they are idle."""
    before = operator.log().count("Traceback")  # of other tests
    address = operator_pod(local)["status"]["podIP"]
    rule = ("FORWARD", "-s", address, "-p", "tcp", "--dport", "8001", "-j", "DROP")
    local.command("exec", "--node", "node0", "--", "iptables", "-I", *rule)
    local.command("exec", "--node", "node1", "--", "iptables", "-I", *rule)
    try:
        services.apply(**spec(), replicas=3)
        services.wait("Ready")
        eventually(
            lambda: services.condition("ScalingActive")[:2] == ("False", "MetricsUnavailable"), what="the reason"
        )
        assert Sizes(lambda: wished(namespace)).watch(20) == {3}, "four times the window after which idle replicas go"
    finally:
        local.command("exec", "--node", "node0", "--", "iptables", "-D", *rule)
        local.command("exec", "--node", "node1", "--", "iptables", "-D", *rule)
    eventually(lambda: wished(namespace) == 1, timeout=60, what="one replica, now that they are seen to be idle")
    assert operator.log().count("Traceback") == before


def test_gpus_that_run_out_are_told(services: Services, namespace: Namespace, operator: Operator) -> None:
    before = operator.log().count("Traceback")  # of other tests
    slow = {"behavior": behavior(pods=1, percent=0), "maxReplicas": 20}
    services.apply(**{**spec(**slow), "resources": {"gpus": 2, "sharedMemory": "64Mi"}})
    services.wait("Ready")
    clients = Clients(namespace)
    clients.start()
    clients.more()
    eventually(
        lambda: services.condition("ScalingLimited")[:2] == ("True", "InsufficientGPU"), timeout=90, what="the reason"
    )
    held = wished(namespace)
    assert Sizes(lambda: wished(namespace)).watch(10) == {held}
    assert held == len(services.pods()) <= 3
    _, bad, errors = clients.stop()
    assert bad == 0, errors
    assert operator.log().count("Traceback") == before


def test_an_operator_killed_in_the_middle_of_a_decision_loses_nothing_and_does_not_jump(
    services: Services, namespace: Namespace, operator: Operator, local: LocalCluster
) -> None:
    """Its wish is written, and before it hears of that the API server is gone and then it is itself: status does not
    know of the wish, and behavior.scaleUp's pace must hold all the same."""
    pace = 25
    services.apply(**spec(maxReplicas=3, behavior=behavior(pods=1, percent=0, periodSeconds=pace)))
    services.wait("Ready")
    clients, sizes = Clients(namespace), Sizes(lambda: wished(namespace))
    clients.start()
    first_wish = {"methods": ["PATCH"], "path": "/scale$", "count": 1, "lost": True}
    local.faults({"userAgent": "^thranite-operator", "writes": first_wish})
    try:
        clients.more()
        eventually(lambda: sizes.now() == 2, what="a wish for two replicas")
        written = time.monotonic()
        kill_operator(local)
        told = namespace.get("infs", "x")["status"].get("autoscaling", {})
        assert not told.get("decisions"), "status knows of the wish: the operator was not in the middle"
        assert int(namespace.get("deployment", "x")["spec"]["replicas"]) == 1
    finally:
        local.faults(None)
    operator.kubectl("rollout", "status", "deployment/thranite", "--timeout=60s")
    assert sizes.watch(written + pace - time.monotonic()) == {2}
    eventually(lambda: sizes.now() == 3, timeout=90, what="the growth that went on")
    eventually(lambda: ready_replicas(namespace) == 3, what="three replicas")
    clients.less()
    eventually(lambda: sizes.now() == 1, timeout=90, what="one replica again")
    _, bad, errors = clients.stop()
    assert (bad, turns(sizes.seen)) == (0, 1), (errors, sizes.seen)
    assert sizes.seen[:3] == [1, 2, 3]
