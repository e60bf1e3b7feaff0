"""Every condition reason by a cluster state that causes it; states of pods, Jobs and Deployments are written by the
test as kubelet and the controllers would write them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.kube import KubeApi, Object
from tests.support.manifests import (
    STAMP,
    condition,
    container,
    job_status,
    loader_pod,
    pod,
    ready,
    running,
    service,
    template_label,
    terminated,
    unschedulable,
)
from tests.support.reconciling import Reconciling

NO_GPU = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
PVC: Object = {"type": "PVC", "claimName": "models"}
EMPTY_DIR: Object = {"type": "EmptyDir"}


def start(api: KubeApi, namespace: str, operator: Reconciling, cache: Object | None = None, **spec: Any) -> None:
    api.create(service(namespace, cache=cache, **spec))
    operator.reconcile(namespace)


def deployment_status(api: KubeApi, namespace: str, **found: str) -> None:
    conditions = [{"type": "Available", "status": "False"}, {**found, "lastTransitionTime": STAMP}]
    api.merge("Deployment", namespace, "x", {"status": {"conditions": conditions}}, "status")


def test_all_conditions_are_there_at_once(api: KubeApi, namespace: str, operator: Reconciling) -> None:
    start(api, namespace, operator)
    status = api.get("InferenceService", namespace, "x")["status"]
    assert [item["type"] for item in status["conditions"]] == [
        "Ready",
        "Available",
        "Progressing",
        "ModelCached",
        "Degraded",
    ]
    assert condition(api, namespace, "Ready")[:2] == ("False", "Starting")
    assert condition(api, namespace, "Available")[:2] == ("False", "NoReplicaReady")
    assert condition(api, namespace, "Progressing")[:2] == ("True", "RolloutInProgress")
    assert condition(api, namespace, "ModelCached")[:2] == ("True", "NotRequired")
    assert condition(api, namespace, "Degraded")[:2] == ("False", "AsExpected")


def test_serving(api: KubeApi, namespace: str, operator: Reconciling) -> None:
    start(api, namespace, operator)
    pod(api, namespace, ready())
    operator.reconcile(namespace)
    assert condition(api, namespace, "Ready") == ("True", "Serving", "1 of 1 replicas serve")
    assert condition(api, namespace, "Available")[0] == "True"
    assert condition(api, namespace, "Progressing")[:2] == ("False", "RolloutComplete")
    status = api.get("InferenceService", namespace, "x")["status"]
    counts = {key: status[key] for key in ("replicas", "readyReplicas", "updatedReplicas", "pendingReplicas")}
    assert counts == {"replicas": 1, "readyReplicas": 1, "updatedReplicas": 1, "pendingReplicas": 0}
    assert status["expectedStartSeconds"] == 10
    assert status["url"] == f"http://x.{namespace}.svc/v1"
    assert status["observedGeneration"] == 1
    assert operator.writes(namespace) == {}


@pytest.mark.parametrize(
    "engine",
    [
        {"extraArgs": ["--ssl-certfile=/tls/tls.crt"]},
        {"extraArgs": ["--ssl-certfile", "/tls/tls.crt"]},
        {"env": [{"name": "THRANITE_SSL_CERTFILE", "value": "/tls/tls.crt"}]},
    ],
)
def test_a_service_with_a_certificate_is_https(
    api: KubeApi, namespace: str, operator: Reconciling, engine: Object
) -> None:
    api.create(service(namespace, engine=engine))
    operator.reconcile(namespace)
    assert api.get("InferenceService", namespace, "x")["status"]["url"] == f"https://x.{namespace}.svc/v1"
    assert {port["appProtocol"] for port in api.get("Service", namespace, "x")["spec"]["ports"]} == {"https"}


def test_former_pods_keep_the_service_available_but_not_ready(
    api: KubeApi, namespace: str, operator: Reconciling
) -> None:
    start(api, namespace, operator)
    pod(api, namespace, ready(), template="former")
    operator.reconcile(namespace)
    assert condition(api, namespace, "Ready")[:2] == ("False", "RolloutInProgress")
    assert condition(api, namespace, "Available")[0] == "True"
    assert api.get("InferenceService", namespace, "x")["status"]["updatedReplicas"] == 0


def test_scaled_to_zero(api: KubeApi, namespace: str, operator: Reconciling) -> None:
    start(api, namespace, operator, replicas=0)
    assert condition(api, namespace, "Ready")[:2] == ("True", "ScaledToZero")
    assert condition(api, namespace, "Available")[:2] == ("False", "ScaledToZero")
    assert condition(api, namespace, "Progressing")[:2] == ("False", "ScaledToZero")


def test_waiting_for_a_gpu_and_for_room(api: KubeApi, namespace: str, operator: Reconciling) -> None:
    start(api, namespace, operator)
    pod(api, namespace, unschedulable(NO_GPU))
    operator.reconcile(namespace)
    assert condition(api, namespace, "Ready")[:2] == ("False", "Unschedulable")
    assert NO_GPU in condition(api, namespace, "Ready")[2]
    assert condition(api, namespace, "Progressing") == ("True", "WaitingForGPU", NO_GPU)
    assert condition(api, namespace, "Degraded")[0] == "False"
    assert api.get("InferenceService", namespace, "x")["status"]["unschedulableReplicas"] == 1
    api.merge(
        "Pod", namespace, "x-1", {"status": unschedulable("0/3 nodes are available: 3 Insufficient cpu.")}, "status"
    )
    operator.reconcile(namespace)
    assert condition(api, namespace, "Progressing")[1] == "WaitingForRoom"


WAITING = "waiting"
FAILURES = {
    "image": (
        "ErrImagePull",
        "not found",
        container({WAITING: {"reason": "ImagePullBackOff", "message": "not found"}}),
    ),
    "image-name": ("InvalidImageName", "bad", container({WAITING: {"reason": "InvalidImageName", "message": "bad"}})),
    "config": (
        "CreateContainerConfigError",
        'secret "hf" not found',
        container({WAITING: {"reason": "CreateContainerConfigError", "message": 'secret "hf" not found'}}),
    ),
    "create": (
        "CreateContainerError",
        "seccomp",
        container({WAITING: {"reason": "CreateContainerError", "message": "no seccomp profile"}}),
    ),
    "run": (
        "RunContainerError",
        "not found in $PATH",
        container({WAITING: {"reason": "RunContainerError", "message": "executable file not found in $PATH"}}),
    ),
    "run-again": (
        "RunContainerError",
        "not found in $PATH",
        container(
            {WAITING: {"reason": "CrashLoopBackOff"}},
            lastState=terminated(128, "executable file not found in $PATH", reason="StartError"),
        ),
    ),
    "oom": (
        "OOMKilled",
        "resources.memory",
        container({WAITING: {"reason": "CrashLoopBackOff"}}, lastState=terminated(137, reason="OOMKilled")),
    ),
    "killed": ("Killed", "exit code 137", container(terminated(137))),
    "config-exit": ("InvalidConfiguration", "--x", container(terminated(3, "cause: --x"))),
    "no-model": ("ModelNotFound", "no such directory", container(terminated(4, "cause: no such directory"))),
    "unsupported": ("UnsupportedModel", "MambaForCausalLM", container(terminated(5, "cause: MambaForCausalLM"))),
    "checkpoint": ("InvalidCheckpoint", "missing tensors", container(terminated(6, "cause: missing tensors"))),
    "too-large": ("DoesNotFit", "80 GB", container(terminated(7, "cause: needs 80 GB"))),
    "engine-died": ("EngineDied", "SIGSEGV", container(terminated(8, "cause: SIGSEGV"))),
    "engine-stalled": ("EngineStalled", "no step", container(terminated(9, "cause: no step"))),
    "other": ("ContainerFailed", "exit code 42", container(terminated(42))),
    "probe": (
        "ProbeFailed",
        "a probe failed",
        container({"running": {"startedAt": STAMP}}, restartCount=1, lastState=terminated(0, reason="Completed")),
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failing_pods_name_their_cause(api: KubeApi, namespace: str, operator: Reconciling, name: str) -> None:
    reason, text, found = FAILURES[name]
    start(api, namespace, operator)
    pod(api, namespace, running(found))
    operator.reconcile(namespace)
    status, ready_reason, message = condition(api, namespace, "Ready")
    assert (status, ready_reason) == ("False", reason)
    assert text in message
    assert message.startswith("x-1: ")
    assert condition(api, namespace, "Degraded")[:2] == ("True", reason)
    assert operator.writes(namespace) == {}


STARTED = container({"running": {"startedAt": STAMP}}, started=True)
FROZEN = container({"running": {"startedAt": STAMP}}, restartCount=1, lastState=terminated(137))
PROBES = {
    "Liveness probe failed: HTTP probe failed with statuscode: 503": ("ProbeFailed", FAILURES["probe"][2]),
    "Liveness probe failed: context deadline exceeded": ("ProbeFailed", FROZEN),
    "Readiness probe failed: context deadline exceeded": ("Killed", FROZEN),
    "Readiness probe failed: HTTP probe failed with statuscode: 503": ("ReadinessProbeFailed", STARTED),
    "Startup probe failed: HTTP probe failed with statuscode: 503": ("Starting", STARTED),
}


@pytest.mark.parametrize("words", PROBES)
def test_probes_speak_through_events(api: KubeApi, namespace: str, operator: Reconciling, words: str) -> None:
    reason, found = PROBES[words]
    start(api, namespace, operator)
    made = pod(api, namespace, running(found))
    involved = {"kind": "Pod", "name": "x-1", "namespace": namespace, "uid": made["metadata"]["uid"]}
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "x-1.1", "namespace": namespace},
        "involvedObject": involved,
        "reason": "Unhealthy",
        "message": words,
        "lastTimestamp": STAMP,
    }
    api.create(event)
    operator.reconcile(namespace)
    assert condition(api, namespace, "Ready")[1] == reason
    told = words in condition(api, namespace, "Ready")[2]
    assert told == reason.endswith("ProbeFailed")


def test_the_last_failure_stays_known(api: KubeApi, namespace: str, operator: Reconciling) -> None:
    start(api, namespace, operator)
    pod(api, namespace, running(container(terminated(8, "cause: SIGSEGV"))))
    operator.reconcile(namespace)
    failure = api.get("InferenceService", namespace, "x")["status"]["lastFailure"]
    assert failure == {
        "pod": "x-1",
        "container": "engine",
        "reason": "EngineDied",
        "exitCode": 8,
        "message": "cause: SIGSEGV",
        "time": "2026-01-01T00:00:05Z",
    }
    api.delete("Pod", namespace, "x-1")
    operator.reconcile(namespace)
    assert api.get("InferenceService", namespace, "x")["status"]["lastFailure"] == failure


def test_pods_that_cannot_be_made(api: KubeApi, namespace: str, operator: Reconciling) -> None:
    start(api, namespace, operator)
    deployment_status(api, namespace, type="ReplicaFailure", status="True", reason="FailedCreate", message="over quota")
    operator.reconcile(namespace)
    assert condition(api, namespace, "Ready") == ("False", "FailedCreate", "over quota")


def test_progress_deadline(api: KubeApi, namespace: str, operator: Reconciling) -> None:
    start(api, namespace, operator)
    reason, message = "ProgressDeadlineExceeded", "has timed out progressing."
    deployment_status(api, namespace, type="Progressing", status="False", reason=reason, message=message)
    operator.reconcile(namespace)
    assert condition(api, namespace, "Progressing") == ("False", reason, message)
    events = {event["reason"]: event["type"] for event in api.items("Event", namespace)}
    assert events[reason] == "Warning"


def test_a_node_that_refuses_pods_does_not_pile_them_up(api: KubeApi, namespace: str, operator: Reconciling) -> None:
    start(api, namespace, operator)
    refused = {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "Allocate failed"}
    for index in range(5):
        pod(api, namespace, refused, name=f"x-{index}")
    operator.reconcile(namespace)
    assert len(api.items("Pod", namespace)) == 2
    assert condition(api, namespace, "Ready")[:2] == ("False", "UnexpectedAdmissionError")
    pod(api, namespace, ready(), name="x-ready")
    operator.reconcile(namespace)
    assert condition(api, namespace, "Degraded")[0] == "False"


def test_a_failed_pod_without_any_word_of_why(api: KubeApi, namespace: str, operator: Reconciling) -> None:
    start(api, namespace, operator)
    pod(api, namespace, {"phase": "Failed"})
    operator.reconcile(namespace)
    assert condition(api, namespace, "Ready") == ("False", "PodFailed", "x-1: the pod failed")
    assert condition(api, namespace, "Degraded")[:2] == ("True", "PodFailed")


def test_no_gpu_is_asked_for_before_the_model_is_cached(api: KubeApi, namespace: str, operator: Reconciling) -> None:
    start(api, namespace, operator, PVC)
    assert api.items("Deployment", namespace) == []
    assert condition(api, namespace, "ModelCached")[:2] == ("False", "Loading")
    assert condition(api, namespace, "Ready")[:2] == ("False", "Loading")
    assert condition(api, namespace, "Progressing")[:2] == ("True", "WaitingForModel")
    (job,) = api.items("Job", namespace)
    spec = job["spec"]["template"]["spec"]
    assert [item["name"] for item in spec["initContainers"] + spec["containers"]] == ["check", "download"]
    assert all("nvidia.com/gpu" not in str(item["resources"]) for item in spec["initContainers"] + spec["containers"])
    assert operator.writes(namespace) == {}
    job_status(api, namespace, "Complete", STAMP)
    operator.reconcile(namespace)
    assert condition(api, namespace, "ModelCached")[:2] == ("True", "Cached")
    mounts = api.get("Deployment", namespace, "x")["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert {"name": "model", "mountPath": "/mnt/models", "readOnly": True} in mounts


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (3, "InvalidConfiguration"),
        (4, "ModelNotFound"),
        (5, "UnsupportedModel"),
        (7, "DoesNotFit"),
        (1, "LoaderFailed"),
    ],
)
def test_a_model_that_cannot_be_served_is_told_and_tried_again_later(
    api: KubeApi, namespace: str, operator: Reconciling, code: int, reason: str
) -> None:
    start(api, namespace, operator, PVC)
    ended = running(container(terminated(code, "cause: because"), name="check"), phase="Failed")
    loader_pod(api, namespace, ended)
    job_status(api, namespace, "Failed", operator.stamp)
    again = operator.reconcile(namespace)
    assert condition(api, namespace, "ModelCached") == ("False", reason, "cause: because")
    assert condition(api, namespace, "Ready") == ("False", reason, "cause: because")
    assert api.items("Deployment", namespace) == []
    assert again.seconds == 300
    events = {event["reason"]: event["type"] for event in api.items("Event", namespace)}
    assert events[reason] == "Warning"
    operator.wait(300)
    assert operator.writes(namespace)["delete Job"] == 1


def test_a_loader_without_a_node_says_so(api: KubeApi, namespace: str, operator: Reconciling) -> None:
    start(api, namespace, operator, PVC)
    loader_pod(api, namespace, unschedulable("no room"))
    operator.reconcile(namespace)
    assert condition(api, namespace, "ModelCached") == ("False", "Unschedulable", "no room")


def test_pods_serve_the_former_model_while_the_new_one_loads(
    api: KubeApi, namespace: str, operator: Reconciling
) -> None:
    start(api, namespace, operator, PVC)
    job_status(api, namespace, "Complete", STAMP)
    operator.reconcile(namespace)
    former = template_label(api, namespace)
    api.merge("InferenceService", namespace, "x", {"spec": {"model": {"revision": "v2"}, "replicas": 3}})
    operator.reconcile(namespace)
    assert template_label(api, namespace) == former
    assert api.get("Deployment", namespace, "x")["spec"]["replicas"] == 3
    assert condition(api, namespace, "ModelCached")[1] == "Loading"
    job_status(api, namespace, "Complete", STAMP)
    operator.reconcile(namespace)
    assert template_label(api, namespace) != former


def test_an_empty_dir_is_filled_by_the_pods(api: KubeApi, namespace: str, operator: Reconciling) -> None:
    start(api, namespace, operator, EMPTY_DIR)
    assert api.items("Job", namespace) == []
    assert condition(api, namespace, "ModelCached")[:2] == ("False", "Loading")
    init = container(terminated(5, "cause: MambaForCausalLM"), name="check")
    pod(api, namespace, running(container({WAITING: {"reason": "PodInitializing"}}), init=[init], phase="Pending"))
    operator.reconcile(namespace)
    assert condition(api, namespace, "ModelCached")[:2] == ("False", "UnsupportedModel")
    assert condition(api, namespace, "Ready")[:2] == ("False", "UnsupportedModel")
    done = [container(terminated(0, reason="Completed"), name=name, ready=True) for name in ("check", "download")]
    pod(api, namespace, {**ready(), "initContainerStatuses": done}, name="x-2")
    operator.reconcile(namespace)
    assert condition(api, namespace, "ModelCached")[:2] == ("True", "Cached")
