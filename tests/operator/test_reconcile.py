"""The reconciler against a real API server: children, no-op, drift, ownership, refusals."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.kube import ApiRefusal, KubeApi, Object
from tests.support.manifests import condition, service
from tests.support.reconciling import Reconciling

POD_MONITOR_CRD: Object = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "podmonitors.monitoring.coreos.com"},
    "spec": {
        "group": "monitoring.coreos.com",
        "names": {
            "kind": "PodMonitor",
            "listKind": "PodMonitorList",
            "plural": "podmonitors",
            "singular": "podmonitor",
        },
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {"spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
                    }
                },
            }
        ],
    },
}
CHILDREN = ("Deployment", "Service", "ServiceAccount", "PodDisruptionBudget", "ControllerRevision")


def names(api: KubeApi, kind: str, namespace: str) -> list[str]:
    return sorted(item["metadata"]["name"] for item in api.items(kind, namespace))


def test_children_of_a_small_service(api: KubeApi, namespace: str, operator: Reconciling) -> None:
    api.create(service(namespace))
    operator.reconcile(namespace)
    assert names(api, "Service", namespace) == ["x", "x-pods"]
    assert names(api, "ServiceAccount", namespace) == ["x"]
    assert names(api, "PodDisruptionBudget", namespace) == []
    assert names(api, "Job", namespace) == []
    assert len(names(api, "ControllerRevision", namespace)) == 1
    deployment = api.get("Deployment", namespace, "x")
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["progressDeadlineSeconds"] == 1800


def test_a_second_reconcile_writes_nothing(api: KubeApi, namespace: str, operator: Reconciling) -> None:
    api.create(service(namespace, replicas=2, resources={"cpu": "1000m", "memory": "1024Mi", "sharedMemory": "0.5Gi"}))
    assert operator.writes(namespace)["apply InferenceService"] == 1
    assert operator.writes(namespace) == {}


def test_owner_references_do_not_block_deletion(api: KubeApi, namespace: str, operator: Reconciling) -> None:
    created = api.create(service(namespace, replicas=2))
    operator.reconcile(namespace)
    for kind in CHILDREN:
        for item in api.items(kind, namespace):
            (owner,) = item["metadata"]["ownerReferences"]
            assert (owner["uid"], owner["controller"]) == (created["metadata"]["uid"], True)
            assert owner.get("blockOwnerDeletion") is False
    assert "finalizers" not in api.get("InferenceService", namespace, "x")["metadata"]
    assert "annotations" not in api.get("InferenceService", namespace, "x")["metadata"]


def test_drift_is_put_right_and_others_fields_are_left(api: KubeApi, namespace: str, operator: Reconciling) -> None:
    api.create(service(namespace))
    operator.reconcile(namespace)
    foreign = {"metadata": {"annotations": {"team": "a"}}, "spec": {"replicas": 7, "paused": True}}
    api.merge("Deployment", namespace, "x", foreign)
    assert operator.writes(namespace) == {"apply Deployment": 1}
    deployment = api.get("Deployment", namespace, "x")
    assert (deployment["spec"]["replicas"], deployment["spec"]["paused"]) == (1, True)
    assert deployment["metadata"]["annotations"]["team"] == "a"
    assert operator.writes(namespace) == {}


def test_what_is_no_longer_planned_is_taken_back(api: KubeApi, namespace: str, operator: Reconciling) -> None:
    api.create(service(namespace, replicas=2, service={"annotations": {"lb": "internal"}}))
    operator.reconcile(namespace)
    assert names(api, "PodDisruptionBudget", namespace) == ["x"]
    api.merge("InferenceService", namespace, "x", {"spec": {"replicas": 1, "service": {"annotations": None}}})
    writes = operator.writes(namespace)
    assert (writes["delete PodDisruptionBudget"], writes["apply Service"]) == (1, 1)
    assert names(api, "PodDisruptionBudget", namespace) == []
    assert "annotations" not in api.get("Service", namespace, "x")["metadata"]


def test_a_refused_child_is_told_and_not_retried_hotly(api: KubeApi, namespace: str, operator: Reconciling) -> None:
    volumes = [{"name": "more", "emptyDir": {"medium": "Tape"}, "configMap": {"name": "x"}}]
    api.create(service(namespace, podTemplate={"volumes": volumes}))
    again = operator.reconcile(namespace)
    status, reason, message = condition(api, namespace, "Ready")
    assert (status, reason) == ("False", "InvalidTemplate")
    assert "Deployment x is refused" in message
    assert "may not specify more than 1 volume type" in message
    assert again.seconds is None
    assert names(api, "Service", namespace) == ["x", "x-pods"]
    api.merge("InferenceService", namespace, "x", {"spec": {"podTemplate": {"volumes": None}}})
    operator.reconcile(namespace)
    assert condition(api, namespace, "Ready")[1] == "Starting"


SIDECAR = {"name": "s", "image": "i"}


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        (
            {
                "podTemplate": {
                    "volumes": [{"name": "v", "emptyDir": {}}],
                    "volumeMounts": [{"name": "v", "mountPath": "/tmp"}],
                }
            },
            "Deployment",
            'duplicate entries for key [mountPath="/tmp"]',
        ),
        ({"podTemplate": {"volumes": [{"name": "v", "emptydir": {}}]}}, "Deployment", "emptydir: field not declared"),
        (
            {"podTemplate": {"containers": [SIDECAR | {"env": [{"name": "A", "value": 1}]}]}},
            "Deployment",
            "expected string, got &value.valueUnstructured{Value:1}",
        ),
        (
            {"networkPolicy": {"enabled": True, "from": [{"podSelector": {"matchlabels": {"a": "b"}}}]}},
            "NetworkPolicy",
            "matchlabels: field not declared",
        ),
    ],
    ids=["mount", "field", "type", "policy"],
)
def test_what_has_no_type_is_told_and_the_rest_goes_on(
    api: KubeApi, namespace: str, operator: Reconciling, spec: dict[str, Any], kind: str, message: str
) -> None:
    """The API server answers these with 500."""
    api.create(service(namespace))
    operator.reconcile(namespace)
    api.merge("InferenceService", namespace, "x", {"spec": {**spec, "service": {"annotations": {"lb": "internal"}}}})
    again = operator.reconcile(namespace)
    status, reason, told = condition(api, namespace, "Ready")
    assert (status, reason) == ("False", "InvalidTemplate")
    assert f"{kind} x is refused" in told
    assert message in told
    assert again.seconds is None
    after = api.get("InferenceService", namespace, "x")
    assert after["status"]["observedGeneration"] == after["metadata"]["generation"]
    assert api.get("Service", namespace, "x")["metadata"]["annotations"]["lb"] == "internal"


def test_a_name_that_somebody_uses_is_left_alone(api: KubeApi, namespace: str, operator: Reconciling) -> None:
    ports = [{"port": 5432}]
    foreign: Object = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x", "namespace": namespace}}
    api.create({**foreign, "spec": {"selector": {"app": "database"}, "ports": ports}})
    api.create(service(namespace))
    operator.reconcile(namespace)
    assert condition(api, namespace, "Ready")[:2] == ("False", "NameTaken")
    assert api.get("Service", namespace, "x")["spec"]["selector"] == {"app": "database"}
    api.delete("Service", namespace, "x")
    operator.reconcile(namespace)
    assert condition(api, namespace, "Ready")[1] == "Starting"


def test_a_retained_claim_outlives_its_service(api: KubeApi, namespace: str, operator: Reconciling) -> None:
    cache = {"type": "PVC", "size": "1Gi", "retain": True}
    api.create(service(namespace, cache=cache))
    operator.reconcile(namespace)
    assert "ownerReferences" not in api.get("PersistentVolumeClaim", namespace, "x-cache")["metadata"]
    api.delete("InferenceService", namespace, "x")
    api.create(service(namespace, name="x", cache={"type": "PVC", "size": "1024Mi"}))
    operator.reconcile(namespace)
    assert len(api.get("PersistentVolumeClaim", namespace, "x-cache")["metadata"]["ownerReferences"]) == 1


def test_network_policy_keeps_the_admin_port_for_operator_and_monitoring(
    api: KubeApi, namespace: str, operator: Reconciling
) -> None:
    api.create(service(namespace, networkPolicy={"enabled": True}))
    operator.reconcile(namespace)
    http, admin = api.get("NetworkPolicy", namespace, "x")["spec"]["ingress"]
    assert http == {"ports": [{"port": 8000, "protocol": "TCP"}]}
    assert admin["ports"] == [{"port": 8001, "protocol": "TCP"}]
    system, monitoring = admin["from"]
    assert system["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "thranite-operator"}
    assert system["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "thranite-system"}
    assert monitoring == {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    assert operator.writes(namespace) == {}


def test_a_pod_monitor_without_its_crd_is_only_told(api: KubeApi, namespace: str, operator: Reconciling) -> None:
    api.create(service(namespace, monitoring={"podMonitor": {"enabled": True}}))
    operator.reconcile(namespace)
    assert condition(api, namespace, "Degraded")[:2] == ("True", "PodMonitorUnavailable")
    assert condition(api, namespace, "Ready")[1] == "Starting"


@pytest.fixture
def pod_monitors(api: KubeApi, namespace: str) -> Iterator[Callable[[], None]]:
    """Called, it installs what the Prometheus operator would; other tests do without."""

    def served() -> bool:
        try:
            api.items("PodMonitor", namespace)
            return True
        except ApiRefusal as refusal:
            if refusal.code in (404, 429):  # not there; there, and its storage is being set up
                return False
            raise

    def install() -> None:
        api.create(POD_MONITOR_CRD)
        until(served)

    yield install
    api.delete("CustomResourceDefinition", "", POD_MONITOR_CRD["metadata"]["name"])
    until(lambda: not served())


def until(check: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_pod_monitor_follows_once_the_cluster_has_such(
    api: KubeApi, namespace: str, operator: Reconciling, pod_monitors: Callable[[], None]
) -> None:
    labels = {"release": "prometheus"}
    api.create(service(namespace, monitoring={"podMonitor": {"enabled": True, "labels": labels, "interval": "7s"}}))
    operator.reconcile(namespace)
    pod_monitors()
    assert operator.writes(namespace) == {"apply PodMonitor": 1, "apply InferenceService": 1}
    assert condition(api, namespace, "Degraded")[1] == "AsExpected"
    found = api.get("PodMonitor", namespace, "x")
    (endpoint,) = found["spec"]["podMetricsEndpoints"]
    assert endpoint == {"port": "admin", "path": "/metrics", "interval": "7s"}
    assert found["metadata"]["labels"]["release"] == "prometheus"
    assert operator.writes(namespace) == {}
    api.merge("PodMonitor", namespace, "x", {"spec": {"podMetricsEndpoints": [{**endpoint, "interval": "1h"}]}})
    assert operator.writes(namespace) == {"apply PodMonitor": 1}
    assert api.get("PodMonitor", namespace, "x")["spec"]["podMetricsEndpoints"] == [endpoint]
    api.merge("InferenceService", namespace, "x", {"spec": {"monitoring": None}})
    assert operator.writes(namespace)["delete PodMonitor"] == 1
    assert api.items("PodMonitor", namespace) == []


def test_a_deleted_service_is_forgotten(api: KubeApi, namespace: str, operator: Reconciling) -> None:
    assert operator.reconcile(namespace).gone
    assert operator.writes(namespace) == {}


def test_events_tell_transitions_once(api: KubeApi, namespace: str, operator: Reconciling) -> None:
    cache = {"type": "PVC", "claimName": "models"}
    api.create(service(namespace, cache=cache))
    operator.reconcile(namespace)
    operator.reconcile(namespace)
    events = api.items("Event", namespace)
    assert sorted(event["reason"] for event in events) == ["Loading", "WaitingForModel"]
    assert all(event["involvedObject"]["name"] == "x" and event["count"] == 1 for event in events)
