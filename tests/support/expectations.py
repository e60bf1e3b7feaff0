"""What an InferenceService's children must look like, told anew from the API's documentation.

A second opinion: it imports nothing of the operator. Input is a spec with the CRD's defaults filled in.
"""

from __future__ import annotations

from typing import Any

from tests.support.kube import Object

Expected = dict[str, dict[str, dict[str, Any]]]  # kind → name → path → value
GPU = "nvidia\\.com/gpu"


def problems_of(status: Object) -> list[str]:
    bad = ("InvalidTemplate", "Forbidden", "NameTaken", "ReconcileFailed")
    return [item["message"] for item in status["conditions"] if item["reason"] in bad]


def expected_children(name: str, spec: Object) -> Expected:
    labels = {
        "app.kubernetes.io/name": "thranite",
        "app.kubernetes.io/instance": name,
        "app.kubernetes.io/component": "engine",
    }
    cache, rollout, front = spec["model"]["cache"], spec["rollout"], spec["service"]
    pod = "spec.template.spec"
    deployment = {
        "spec.replicas": spec["replicas"],
        "spec.selector.matchLabels": labels,
        "spec.progressDeadlineSeconds": rollout["progressDeadlineSeconds"],
        "spec.strategy.rollingUpdate": {
            "maxSurge": rollout["maxSurge"],
            "maxUnavailable": rollout["maxUnavailable"],
        },
        f"{pod}.serviceAccountName": name,
        f"{pod}.automountServiceAccountToken": False,
        f"{pod}.terminationGracePeriodSeconds": spec["drain"]["timeoutSeconds"] + 30,
        f"{pod}.priorityClassName": spec["scheduling"].get("priorityClassName"),
        f"{pod}.imagePullSecrets": spec["engine"].get("imagePullSecrets"),
        f"{pod}.nodeSelector": node_selector(spec),
        f"{pod}.containers.0.image": spec["engine"].get("image", "thranite:test"),
        f"{pod}.containers.0.args.0": model_path(spec),
        f"{pod}.containers.0.resources.limits.{GPU}": str(spec["resources"]["gpus"])
        if spec["resources"]["gpus"]
        else None,
        f"{pod}.containers.1.name": "proxy" if spec["podTemplate"].get("containers") else None,
        f"{pod}.initContainers.0.name": "check" if cache["type"] == "EmptyDir" else None,
        "spec.template.metadata.annotations": spec["podTemplate"].get("annotations"),
        "spec.template.metadata.labels.team": spec["podTemplate"].get("labels", {}).get("team"),
    }
    main = {
        "spec.ports.0.port": front["port"],
        "spec.ports.0.targetPort": "http",
        "spec.type": front["type"],
        "spec.selector": labels,
        "metadata.annotations": front.get("annotations"),
    }
    headless = {"spec.clusterIP": "None", "spec.ports.0.port": 8000, "spec.selector": labels}
    policy = {"spec.podSelector.matchLabels": labels, "spec.ingress.1.ports.0.port": 8001}
    policy["spec.ingress.0.from"] = spec["networkPolicy"].get("from")
    budget = {"spec.maxUnavailable": 1, "spec.unhealthyPodEvictionPolicy": "AlwaysAllow"}
    claim = {"spec.resources.requests.storage": cache.get("size"), "spec.accessModes": ["ReadWriteMany"]}
    return {
        "Deployment": {name: deployment},
        "Service": {name: main, f"{name}-pods": headless},
        "ServiceAccount": {name: {"automountServiceAccountToken": False}},
        "PodDisruptionBudget": {name: budget} if spec["replicas"] >= 2 else {},
        "NetworkPolicy": {name: policy} if spec["networkPolicy"]["enabled"] else {},
        "PersistentVolumeClaim": {f"{name}-cache": claim} if cache.get("size") else {},
    }


def node_selector(spec: Object) -> dict[str, str] | None:
    product = spec["resources"].get("gpuProduct")
    wanted = {**spec["scheduling"].get("nodeSelector", {}), **({"nvidia.com/gpu.product": product} if product else {})}
    return wanted or None


def model_path(spec: Object) -> str:
    model = spec["model"]
    scheme, rest = model["uri"].split("://")
    if scheme == "file":
        return str(rest)
    if scheme == "pvc":
        return {"models/x": "/mnt/models/x", "models": "/mnt/models"}[rest]
    if model["cache"]["type"] == "None":
        return str(rest)
    parts = [*rest.split("/"), *model.get("revision", "").split("/")]
    return "/mnt/models/" + "--".join(part for part in parts if part)
