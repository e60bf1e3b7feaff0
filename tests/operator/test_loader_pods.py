"""What the pods of a loader have of the spec, and what is told of those that are refused or fail."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.kube import ApiRefusal, KubeApi, Object
from tests.support.manifests import (
    STAMP,
    condition,
    container,
    job_status,
    loader_pod,
    running,
    service,
    terminated,
    unschedulable,
)
from tests.support.reconciling import SETTINGS, Reconciling
from thranite_operator.render.cache import loader_job
from thranite_operator.render.pod_template import pod_template
from thranite_operator.spec import InferenceService, parse_service

OWN_CLAIM: Object = {"type": "PVC", "size": "1Gi"}
EMPTY_DIR: Object = {"type": "EmptyDir"}
QUOTA = 'Error creating: pods "x-load-" is forbidden: exceeded quota: gpu-quota'
CA: Object = {"name": "ca", "configMap": {"name": "company"}}
CA_MOUNT: Object = {"name": "ca", "mountPath": "/etc/company", "readOnly": True}


def start(api: KubeApi, namespace: str, operator: Reconciling, cache: Object = OWN_CLAIM, **spec: Any) -> None:
    api.create(service(namespace, cache=cache, **spec))
    operator.reconcile(namespace)


def job_of(api: KubeApi, namespace: str) -> Object:
    (job,) = api.items("Job", namespace)
    return job


def containers_of(template: Object) -> list[Object]:
    return [*template["spec"].get("initContainers", ()), *template["spec"]["containers"]]


@pytest.mark.parametrize("length", [46, 47, 52])
def test_the_causes_of_a_loader_are_told_whatever_the_length_of_its_name(
    api: KubeApi, namespace: str, operator: Reconciling, length: int
) -> None:
    """Of a Job's name with 58 characters and more the API server leaves out the end, to name pods after it."""
    name = "x" * length
    api.create(service(namespace, name=name, cache=OWN_CLAIM))
    operator.reconcile(namespace, name)
    waiting = loader_pod(api, namespace, unschedulable("no room"))
    operator.reconcile(namespace, name)
    assert condition(api, namespace, "ModelCached", name) == ("False", "Unschedulable", "no room")
    ended = running(container(terminated(4, "cause: no such model"), name="check"), phase="Failed")
    api.merge("Pod", namespace, waiting["metadata"]["name"], {"status": ended}, "status")
    job_status(api, namespace, "Failed", operator.stamp)
    operator.reconcile(namespace, name)
    assert condition(api, namespace, "ModelCached", name) == ("False", "ModelNotFound", "cause: no such model")


def failed_create(api: KubeApi, namespace: str, message: str, at: str, name: str) -> None:
    meta = job_of(api, namespace)["metadata"]
    involved = {"kind": "Job", "name": meta["name"], "namespace": namespace, "uid": meta["uid"]}
    event = {"apiVersion": "v1", "kind": "Event", "metadata": {"name": name, "namespace": namespace}}
    api.create({**event, "involvedObject": involved, "reason": "FailedCreate", "message": message, "lastTimestamp": at})


def test_a_loader_whose_pods_are_refused_says_why(api: KubeApi, namespace: str, operator: Reconciling) -> None:
    start(api, namespace, operator)
    failed_create(api, namespace, "no such account", STAMP, "first")
    assert 0 < (operator.reconcile(namespace).seconds or 0) <= 16
    assert condition(api, namespace, "ModelCached") == ("False", "Loading", "the loader is being started")
    operator.wait(20)
    failed_create(api, namespace, QUOTA, operator.stamp, "second")
    assert operator.reconcile(namespace).seconds == 30
    assert condition(api, namespace, "ModelCached") == ("False", "FailedCreate", QUOTA)
    assert condition(api, namespace, "Ready") == ("False", "FailedCreate", QUOTA)
    assert api.items("Deployment", namespace) == []
    told = [event for event in api.items("Event", namespace) if event["involvedObject"]["kind"] == "InferenceService"]
    assert {event["reason"]: event["type"] for event in told}["FailedCreate"] == "Warning"
    assert operator.writes(namespace) == {}
    loader_pod(api, namespace, running(container({"running": {"startedAt": STAMP}}, name="download")))
    assert operator.reconcile(namespace).seconds is None
    assert condition(api, namespace, "ModelCached") == ("False", "Loading", "the loader runs")


def test_a_job_without_a_pod_names_the_way_to_see_why(api: KubeApi, namespace: str, operator: Reconciling) -> None:
    start(api, namespace, operator)
    operator.wait(20)
    operator.reconcile(namespace)
    status, reason, message = condition(api, namespace, "ModelCached")
    assert (status, reason) == ("False", "Loading")
    assert f"kubectl describe job {job_of(api, namespace)['metadata']['name']}" in message


@pytest.mark.parametrize("cache", [OWN_CLAIM, EMPTY_DIR], ids=["claim", "empty-dir"])
def test_loaders_pass_a_quota_of_memory(api: KubeApi, namespace: str, operator: Reconciling, cache: Object) -> None:
    start(api, namespace, operator, cache, resources={"memory": "16Gi"})
    kind = "Deployment" if cache is EMPTY_DIR else "Job"
    template = api.items(kind, namespace)[0]["spec"]["template"]
    hard = {"requests.memory": "16Gi", "limits.memory": "16Gi"}
    meta = {"name": "quota", "namespace": namespace}
    api.create({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": meta, "spec": {"hard": hard}})
    used = dict.fromkeys(hard, "0")
    api.merge("ResourceQuota", namespace, "quota", {"status": {"hard": hard, "used": used}}, "status")
    meta = {**template["metadata"], "name": "made", "namespace": namespace}
    body: Object = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]}
    api.create(body)
    api.delete("Pod", namespace, "made")
    for item in containers_of(template):
        if item["name"] in ("check", "download"):
            item["resources"] = {"requests": {"cpu": "100m"}}
    with pytest.raises(ApiRefusal, match=r"must specify limits.memory for: check,download"):
        api.create(body)


def made(**spec: Any) -> InferenceService:
    body = service("default", **spec)
    return parse_service({**body, "metadata": {**body["metadata"], "uid": "u", "generation": 1}})


@pytest.mark.parametrize("fields", [{"gpus": 0}, {"gpus": 1}], ids=["no-gpu", "device-cpu"])
def test_a_loader_on_the_cpu_sees_the_limit_of_the_engine(fields: Object) -> None:
    engine = {"extraArgs": ["--device=cpu"]} if fields["gpus"] else {}
    for memory, expected in ((None, {}), ("4Gi", {"memory": "4Gi"})):
        job = loader_job(made(cache=OWN_CLAIM, engine=engine, resources={**fields, "memory": memory}), SETTINGS)
        assert job is not None
        for item in containers_of(job["spec"]["template"]):
            assert item["resources"].get("limits", {}) == expected


def test_the_loader_has_what_the_pod_template_brings(api: KubeApi, namespace: str, operator: Reconciling) -> None:
    claim = {"name": "data", "persistentVolumeClaim": {"claimName": "data"}}
    extra = {
        "labels": {"team": "a", "sidecar.istio.io/inject": "false", "job-name": "batch"},
        "annotations": {"note": "b"},
        "volumes": [CA, claim],
        "volumeMounts": [CA_MOUNT, {"name": "data", "mountPath": "/data"}, {"name": "shm", "mountPath": "/shared"}],
    }
    start(api, namespace, operator, podTemplate=extra)
    assert condition(api, namespace, "Ready")[:2] == ("False", "Loading")
    job = job_of(api, namespace)
    template = job["spec"]["template"]
    labels, name = template["metadata"]["labels"], job["metadata"]["name"]
    assert (labels["team"], labels["sidecar.istio.io/inject"], labels["job-name"]) == ("a", "false", name)
    assert template["metadata"]["annotations"] == {"note": "b"}
    assert [item["name"] for item in template["spec"]["volumes"]] == ["tmp", "cache", "model", "ca"]
    for item in containers_of(template):
        assert CA_MOUNT in item["volumeMounts"]
        assert len(item["volumeMounts"]) == 4
    selector = api.get("Service", namespace, "x")["spec"]["selector"]
    assert not selector.items() <= labels.items()


def test_labels_of_the_operator_win() -> None:
    """Also where the CRD's rule against others of these names has not been asked."""
    extra = {"labels": {"app.kubernetes.io/component": "engine"}}
    job = loader_job(made(cache=OWN_CLAIM, podTemplate=extra), SETTINGS)
    assert job is not None
    assert job["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"] == "loader"


def test_init_containers_have_all_mounts_as_they_share_the_pod_of_the_engine() -> None:
    extra = {"volumes": [CA], "volumeMounts": [CA_MOUNT]}
    template = pod_template(made(cache=EMPTY_DIR, podTemplate=extra), SETTINGS)
    assert [item["name"] for item in containers_of(template)] == ["check", "download", "engine"]
    assert all(CA_MOUNT in item["volumeMounts"] for item in containers_of(template))


@pytest.mark.parametrize(
    "extra",
    [{"labels": {"team": "b"}}, {"annotations": {"note": "b"}}, {"volumes": [CA], "volumeMounts": [CA_MOUNT]}],
    ids=["labels", "annotations", "volumes"],
)
def test_a_changed_pod_template_replaces_a_loader_that_waits_and_leaves_one_that_is_done(
    api: KubeApi, namespace: str, operator: Reconciling, extra: Object
) -> None:
    start(api, namespace, operator)
    first = job_of(api, namespace)["metadata"]
    api.merge("InferenceService", namespace, "x", {"spec": {"podTemplate": extra}})
    assert operator.writes(namespace)["delete Job"] == 1
    operator.reconcile(namespace)
    second = job_of(api, namespace)["metadata"]
    assert second["name"] == first["name"]
    assert second["uid"] != first["uid"]
    operator.wait(1)
    job_status(api, namespace, "Complete", operator.stamp)
    operator.reconcile(namespace)
    former = {"labels": None, "annotations": None, "volumes": None, "volumeMounts": None}
    api.merge("InferenceService", namespace, "x", {"spec": {"podTemplate": former}})
    assert "delete Job" not in operator.writes(namespace)
    assert job_of(api, namespace)["metadata"]["uid"] == second["uid"]
    assert condition(api, namespace, "ModelCached")[:2] == ("True", "Cached")


@pytest.mark.parametrize("brought", [True, False], ids=["volume", "image"])
def test_a_model_of_the_users_own_may_lie_where_ours_do(
    api: KubeApi, namespace: str, operator: Reconciling, brought: bool
) -> None:
    claim = {"name": "mine", "persistentVolumeClaim": {"claimName": "mine"}}
    mount = {"name": "mine", "mountPath": "/mnt/models"}
    extra: dict[str, Any] = {"podTemplate": {"volumes": [claim], "volumeMounts": [mount]}} if brought else {}
    api.create(service(namespace, uri="file:///mnt/models/llama", **extra))
    operator.reconcile(namespace)
    assert condition(api, namespace, "Ready")[:2] == ("False", "Starting")
    (engine,) = api.get("Deployment", namespace, "x")["spec"]["template"]["spec"]["containers"]
    assert engine["args"][0] == "/mnt/models/llama"
    assert (mount in engine["volumeMounts"]) == brought
    assert "model" not in {item["name"] for item in engine["volumeMounts"]}
