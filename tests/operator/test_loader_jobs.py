"""When a loader is replaced, run again, or left; and how long a claim stays."""

from __future__ import annotations

import pytest

from tests.support.kube import KubeApi, Object
from tests.support.manifests import STAMP, condition, job_status, pod, ready, service, template_label
from tests.support.reconciling import Reconciling

OWN_CLAIM: Object = {"type": "PVC", "size": "1Gi"}
CLAIMS = "PersistentVolumeClaim"


def load(api: KubeApi, namespace: str, operator: Reconciling) -> None:
    """The model is in the claim, a second after that was made."""
    operator.reconcile(namespace)
    operator.wait(1)
    job_status(api, namespace, "Complete", operator.stamp)
    operator.reconcile(namespace)
    assert condition(api, namespace, "ModelCached")[:2] == ("True", "Cached")


def job_uid(api: KubeApi, namespace: str) -> str:
    (job,) = api.items("Job", namespace)
    return str(job["metadata"]["uid"])


@pytest.mark.parametrize(
    "change",
    [
        {"engine": {"image": "registry.example/runtime:right"}},
        {"engine": {"imagePullSecrets": [{"name": "pull"}]}},
        {"scheduling": {"nodeSelector": {"disk": "large"}}},
    ],
    ids=["image", "pull-secret", "node"],
)
def test_a_loader_that_may_wait_without_end_is_replaced_by_one_that_need_not(
    api: KubeApi, namespace: str, operator: Reconciling, change: Object
) -> None:
    api.create(service(namespace, cache=OWN_CLAIM))
    operator.reconcile(namespace)
    before = job_uid(api, namespace)
    assert operator.writes(namespace) == {}
    api.merge("InferenceService", namespace, "x", {"spec": change})
    assert operator.writes(namespace)["delete Job"] == 1
    assert condition(api, namespace, "ModelCached")[:2] == ("False", "Loading")
    operator.reconcile(namespace)
    assert job_uid(api, namespace) != before
    assert operator.writes(namespace) == {}


def test_a_loader_that_failed_is_replaced_at_once_when_its_template_changes(
    api: KubeApi, namespace: str, operator: Reconciling
) -> None:
    api.create(service(namespace, cache=OWN_CLAIM))
    operator.reconcile(namespace)
    job_status(api, namespace, "Failed", operator.stamp)
    assert operator.reconcile(namespace).seconds == 300
    api.merge("InferenceService", namespace, "x", {"spec": {"engine": {"image": "registry.example/runtime:right"}}})
    assert operator.writes(namespace)["delete Job"] == 1


def test_a_loader_that_has_loaded_the_model_is_not_run_again_for_another_image(
    api: KubeApi, namespace: str, operator: Reconciling
) -> None:
    api.create(service(namespace, cache=OWN_CLAIM))
    load(api, namespace, operator)
    before, former = job_uid(api, namespace), template_label(api, namespace)
    api.merge("InferenceService", namespace, "x", {"spec": {"engine": {"image": "registry.example/runtime:next"}}})
    operator.reconcile(namespace)
    assert job_uid(api, namespace) == before
    assert template_label(api, namespace) != former


def test_a_lost_claim_is_made_and_filled_again(api: KubeApi, namespace: str, operator: Reconciling) -> None:
    api.create(service(namespace, cache=OWN_CLAIM))
    load(api, namespace, operator)
    before = job_uid(api, namespace)
    api.delete(CLAIMS, namespace, "x-cache")
    api.merge(CLAIMS, namespace, "x-cache", {"metadata": {"finalizers": None}})  # no pod holds it
    writes = operator.writes(namespace)
    assert (writes[f"apply {CLAIMS}"], writes["delete Job"]) == (1, 1)
    assert condition(api, namespace, "ModelCached")[:2] == ("False", "Loading")
    operator.reconcile(namespace)
    assert job_uid(api, namespace) != before


def test_a_load_that_ended_before_its_claim_was_made_filled_another(
    api: KubeApi, namespace: str, operator: Reconciling
) -> None:
    api.create(service(namespace, cache=OWN_CLAIM))
    operator.reconcile(namespace)
    job_status(api, namespace, "Complete", STAMP)
    assert operator.writes(namespace)["delete Job"] == 1
    assert condition(api, namespace, "ModelCached")[:2] == ("False", "Loading")


def test_a_claim_outlasts_the_pods_that_serve_from_it(api: KubeApi, namespace: str, operator: Reconciling) -> None:
    api.create(service(namespace, cache=OWN_CLAIM))
    load(api, namespace, operator)
    pod(api, namespace, ready())
    cache = {"size": None, "claimName": "shared"}
    api.merge("InferenceService", namespace, "x", {"spec": {"model": {"cache": cache}}})
    operator.reconcile(namespace)
    operator.reconcile(namespace)
    assert claim_of_pods(api, namespace) == "x-cache"
    assert "deletionTimestamp" not in api.get(CLAIMS, namespace, "x-cache")["metadata"]
    job_status(api, namespace, "Complete", operator.stamp)
    operator.reconcile(namespace)
    assert claim_of_pods(api, namespace) == "shared"
    assert "deletionTimestamp" not in api.get(CLAIMS, namespace, "x-cache")["metadata"]
    pod(api, namespace, ready(), name="x-2")
    api.delete("Pod", namespace, "x-1")
    assert operator.writes(namespace)[f"delete {CLAIMS}"] == 1


def test_a_claim_outlasts_the_deployment_that_mounts_it(api: KubeApi, namespace: str, operator: Reconciling) -> None:
    """Also where it has no pod: it may make one, or its change be refused."""
    api.create(service(namespace, cache=OWN_CLAIM))
    load(api, namespace, operator)
    cache = {"size": None, "type": "None"}
    api.merge("InferenceService", namespace, "x", {"spec": {"model": {"cache": cache}}})
    writes = operator.writes(namespace)
    assert writes["apply Deployment"] == 1
    assert f"delete {CLAIMS}" not in writes
    assert operator.writes(namespace)[f"delete {CLAIMS}"] == 1


def claim_of_pods(api: KubeApi, namespace: str) -> str:
    volumes = api.get("Deployment", namespace, "x")["spec"]["template"]["spec"]["volumes"]
    (claim,) = (volume["persistentVolumeClaim"]["claimName"] for volume in volumes if "persistentVolumeClaim" in volume)
    return str(claim)
