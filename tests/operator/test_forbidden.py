"""What the API server does not allow is told, and keeps nothing else from being done."""

from __future__ import annotations

import pytest

from tests.support.apiserver import LIMITED_TOKEN, LIMITED_USER, ApiServer
from tests.support.kube import KubeApi, Object
from tests.support.manifests import condition, pod, ready, service
from tests.support.reconciling import Reconciling
from thranite_operator.kube import Refused

RBAC = "rbac.authorization.k8s.io"


def test_a_quota_on_one_child_stops_neither_the_others_nor_the_counts(
    api: KubeApi, namespace: str, operator: Reconciling
) -> None:
    api.create(service(namespace, replicas=2))
    operator.reconcile(namespace)
    pod(api, namespace, ready())
    operator.reconcile(namespace)
    quota(api, namespace, "services.loadbalancers", "0")
    changes = {"replicas": 1, "service": {"type": "LoadBalancer"}}  # one replica has no disruption budget
    api.merge("InferenceService", namespace, "x", {"spec": changes})
    api.merge("Pod", namespace, "x-1", {"status": {"phase": "Failed"}}, "status")
    again = operator.reconcile(namespace)
    status, reason, message = condition(api, namespace, "Ready")
    assert (status, reason) == ("False", "Forbidden")
    assert "Service x is refused" in message
    assert "exceeded quota" in message
    assert api.get("Deployment", namespace, "x")["spec"]["replicas"] == 1
    assert api.items("PodDisruptionBudget", namespace) == []
    assert condition(api, namespace, "Available")[:2] == ("False", "NoReplicaReady")
    assert api.get("InferenceService", namespace, "x")["status"]["observedGeneration"] == 2
    assert again.seconds == 30
    events = {event["reason"]: event["type"] for event in api.items("Event", namespace)}
    assert events["Forbidden"] == "Warning"
    quota(api, namespace, "services.loadbalancers", "1")
    operator.reconcile(namespace)
    assert api.get("Service", namespace, "x")["spec"]["type"] == "LoadBalancer"
    assert condition(api, namespace, "Ready")[1] != "Forbidden"


def test_pods_are_not_made_of_a_revision_that_cannot_be_stored(
    api: KubeApi, namespace: str, operator: Reconciling
) -> None:
    """Nor without the policy that shields them: what hangs on a refused child waits for it."""
    quota(api, namespace, "count/controllerrevisions.apps", "0")
    api.create(service(namespace))
    operator.reconcile(namespace)
    assert condition(api, namespace, "Ready")[:2] == ("False", "Forbidden")
    assert "ControllerRevision" in condition(api, namespace, "Ready")[2]
    assert api.items("Deployment", namespace) == []
    assert [item["metadata"]["name"] for item in api.items("Service", namespace)] == ["x", "x-pods"]
    quota(api, namespace, "count/controllerrevisions.apps", "1")
    operator.reconcile(namespace)
    assert len(api.items("Deployment", namespace)) == 1


def quota(api: KubeApi, namespace: str, resource: str, limit: str) -> None:
    """With the status that its controller would write."""
    meta = {"name": "quota", "namespace": namespace}
    body = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": meta, "spec": {"hard": {resource: limit}}}
    if not api.items("ResourceQuota", namespace):
        api.create(body)
    status = {"hard": {resource: limit}, "used": {resource: "0"}}
    api.merge("ResourceQuota", namespace, "quota", {"spec": body["spec"]})
    api.merge("ResourceQuota", namespace, "quota", {"status": status}, "status")


def test_an_operator_that_may_not_write_says_so(
    api_server: ApiServer, api: KubeApi, namespace: str, operator: Reconciling
) -> None:
    api.create(service(namespace, replicas=2))
    operator.reconcile(namespace)
    pod(api, namespace, ready())
    operator.reconcile(namespace)
    groups = ["", "apps", "batch", "policy", "networking.k8s.io", "monitoring.coreos.com", "thranite.dev"]
    allow(api, namespace, *({"apiGroups": [group], "resources": ["*"], "verbs": ["get", "list"]} for group in groups))
    api.merge("InferenceService", namespace, "x", {"spec": {"replicas": 1}})
    with Reconciling(api_server, token=LIMITED_TOKEN) as limited:
        again = limited.reconcile(namespace)
    status, reason, message = condition(api, namespace, "Ready")
    assert (status, reason) == ("False", "Forbidden")
    assert "forbidden" in message
    reason, message = condition(api, namespace, "Degraded")[1:]
    assert reason == "Forbidden"
    assert "PodDisruptionBudget x is not to be deleted" in message
    assert condition(api, namespace, "Available")[:2] == ("True", "Serving")
    assert again.seconds == 30
    operator.reconcile(namespace)
    assert condition(api, namespace, "Ready")[:2] == ("True", "Serving")


def test_an_operator_that_may_not_read_says_so(
    api_server: ApiServer, api: KubeApi, namespace: str, operator: Reconciling
) -> None:
    api.create(service(namespace))
    operator.reconcile(namespace)
    pod(api, namespace, ready())
    operator.reconcile(namespace)
    allow(api, namespace, {"apiGroups": ["thranite.dev"], "resources": ["*"], "verbs": ["get", "list"]})
    with Reconciling(api_server, token=LIMITED_TOKEN) as limited, pytest.raises(Refused, match="forbidden"):
        limited.reconcile(namespace)
    status, reason, message = condition(api, namespace, "Ready")
    assert (status, reason) == ("Unknown", "ReconcileFailed")
    assert "forbidden" in message
    assert condition(api, namespace, "Available")[:2] == ("True", "Serving")
    operator.reconcile(namespace)
    assert condition(api, namespace, "Ready")[:2] == ("True", "Serving")


def allow(api: KubeApi, namespace: str, *rules: Object) -> None:
    """These and writing a status to the limited user, and no more."""
    meta = {"name": "limited", "namespace": namespace}
    writing = (
        {"apiGroups": ["thranite.dev"], "resources": ["inferenceservices/status"], "verbs": ["patch"]},
        {"apiGroups": [""], "resources": ["events"], "verbs": ["create"]},
    )
    api.create({"apiVersion": f"{RBAC}/v1", "kind": "Role", "metadata": meta, "rules": [*rules, *writing]})
    subjects = [{"kind": "User", "name": LIMITED_USER, "apiGroup": RBAC}]
    role = {"apiGroup": RBAC, "kind": "Role", "name": "limited"}
    binding = {"apiVersion": f"{RBAC}/v1", "kind": "RoleBinding", "metadata": meta}
    api.create({**binding, "roleRef": role, "subjects": subjects})
