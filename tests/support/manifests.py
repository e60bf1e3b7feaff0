"""InferenceServices and the status of pods, Jobs and Deployments as tests write them."""

from __future__ import annotations

from typing import Any

from tests.support.kube import KubeApi, Object

HUB = "hf://meta-llama/Llama-3.2-1B"
STAMP = "2026-01-01T00:00:10Z"
SELECTOR = {
    "app.kubernetes.io/name": "thranite",
    "app.kubernetes.io/instance": "x",
    "app.kubernetes.io/component": "engine",
}


def service(namespace: str, name: str = "x", uri: str = HUB, cache: Object | None = None, **spec: Any) -> Object:
    model: Object = {"uri": uri, **({"cache": cache} if cache else {})}
    metadata = {"name": name, "namespace": namespace}
    body = {"model": model, **spec}
    return {"apiVersion": "thranite.dev/v1alpha1", "kind": "InferenceService", "metadata": metadata, "spec": body}


def template_label(api: KubeApi, namespace: str, name: str = "x") -> str:
    template = api.get("Deployment", namespace, name)["spec"]["template"]
    label: str = template["metadata"]["labels"]["thranite.dev/template"]
    return label


def pod(api: KubeApi, namespace: str, status: Object, *, name: str = "x-1", template: str = "") -> Object:
    """A pod of the service `x` as its Deployment would make it, with a status as kubelet would write it."""
    labels = {**SELECTOR, "app.kubernetes.io/managed-by": "thranite-operator"}
    labels["thranite.dev/template"] = template or template_label(api, namespace)
    container = {"name": "engine", "image": "thranite:test"}
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    api.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container]}})
    return api.merge("Pod", namespace, name, {"status": status}, "status")


def loader_pod(api: KubeApi, namespace: str, status: Object) -> Object:
    """A pod of the only Job, named by the API server as for the Job's controller."""
    (job,) = api.items("Job", namespace)
    meta = job["metadata"]
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": meta["name"], "uid": meta["uid"], "controller": True}
    labels = job["spec"]["template"]["metadata"]["labels"]
    metadata = {"generateName": f"{meta['name']}-", "namespace": namespace, "labels": labels}
    metadata["ownerReferences"] = [owner]
    container = {"name": "download", "image": "thranite:test"}
    made = api.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container]}})
    return api.merge("Pod", namespace, made["metadata"]["name"], {"status": status}, "status")


def ready(at: str = STAMP) -> Object:
    return {
        "phase": "Running",
        "conditions": [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"},
            {"type": "Ready", "status": "True", "lastTransitionTime": at},
        ],
        "containerStatuses": [
            container(state={"running": {"startedAt": "2026-01-01T00:00:01Z"}}, ready=True, started=True)
        ],
    }


def container(state: Object, name: str = "engine", **fields: Any) -> Object:
    whole = {"name": name, "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": state}
    return {**whole, **fields}


def terminated(code: int, message: str = "", reason: str = "Error", at: str = "2026-01-01T00:00:05Z") -> Object:
    return {"terminated": {"exitCode": code, "reason": reason, "message": message, "finishedAt": at}}


def running(*containers: Object, init: list[Object] | None = None, phase: str = "Running") -> Object:
    conditions = [
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"},
        {"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T00:00:00Z"},
    ]
    status: Object = {"phase": phase, "conditions": conditions, "containerStatuses": list(containers)}
    return {**status, "initContainerStatuses": init} if init else status


def unschedulable(message: str) -> Object:
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": message,
        "lastTransitionTime": STAMP,
    }
    return {"phase": "Pending", "conditions": [condition]}


def job_status(api: KubeApi, namespace: str, kind: str, at: str) -> None:
    """The only Job has ended so."""
    (job,) = api.items("Job", namespace)
    name = job["metadata"]["name"]
    status: Object = {"startTime": STAMP, "conditions": [{"type": f"{kind}Criteria", "status": "True"}]}
    stamp = {"lastTransitionTime": at, "status": "True"}
    before = {"Complete": "SuccessCriteriaMet", "Failed": "FailureTarget"}[kind]
    status["conditions"] = [{"type": before, **stamp}, {"type": kind, **stamp}]
    if kind == "Complete":
        status |= {"completionTime": at, "succeeded": 1}
    api.merge("Job", namespace, name, {"status": status}, "status")


def condition(api: KubeApi, namespace: str, kind: str, name: str = "x") -> tuple[str, str, str]:
    """Status, reason and message."""
    status = api.get("InferenceService", namespace, name)["status"]
    found = next(item for item in status["conditions"] if item["type"] == kind)
    return found["status"], found["reason"], found["message"]
