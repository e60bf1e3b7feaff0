"""The pod template of the replicas: the only part that restarts a model when it changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thranite_operator import names
from thranite_operator.kinds import Object
from thranite_operator.render import containers
from thranite_operator.render.model import Location, locate
from thranite_operator.render.objects import compact
from thranite_operator.settings import Settings
from thranite_operator.spec import InferenceService, Spec

END_SLACK = 30  # seconds after the drain's deadline: cut-off streams end, processes exit
GPU_PRODUCT = "nvidia.com/gpu.product"


def pod_template(service: InferenceService, settings: Settings) -> Object:
    spec, location = service.spec, locate(service)
    extra = spec.pod_template
    init = location.loaded_by == "init"
    loaders = containers.loaders(service, location, settings, extra.volume_mounts) if init else []
    own = pod_spec(service)
    own["initContainers"] = [*_sidecars(extra.init_containers, spec), *loaders]
    own["containers"] = [containers.engine(service, location, settings), *_sidecars(extra.containers, spec)]
    own["terminationGracePeriodSeconds"] = spec.drain.timeout_seconds + END_SLACK
    own["volumes"] = [*volumes(service, location), *_engine_volumes(spec), *extra.volumes]
    labels = {**extra.labels, **names.labels(service.name, names.ENGINE)}
    meta = compact({"labels": labels, "annotations": extra.annotations})
    return {"metadata": meta, "spec": {key: value for key, value in own.items() if value not in (None, {}, [])}}


def pod_spec(service: InferenceService) -> Object:
    """What replicas and loaders share, placement included: a loader must reach the claim that replicas mount."""
    spec = service.spec
    place = spec.scheduling
    product = {GPU_PRODUCT: spec.resources.gpu_product} if spec.resources.gpu_product else {}
    shared = {
        "serviceAccountName": service.name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "imagePullSecrets": list(spec.engine.image_pull_secrets),
        "securityContext": _pod_security(),
        "nodeSelector": {**place.node_selector, **product},
        "tolerations": [*_gpu_toleration(spec), *place.tolerations],
        "affinity": dict(place.affinity),
        "topologySpreadConstraints": [_spread(service, item) for item in place.topology_spread],
        "priorityClassName": place.priority_class_name,
        "runtimeClassName": place.runtime_class_name,
        "schedulerName": place.scheduler_name,
    }
    return {key: value for key, value in shared.items() if value not in (None, {}, [])}


def volumes(service: InferenceService, location: Location) -> list[Object]:
    own: list[Object] = [{"name": "tmp", "emptyDir": {}}, {"name": "cache", "emptyDir": {}}]
    if location.claim is not None:
        own.append({"name": "model", "persistentVolumeClaim": {"claimName": location.claim}})
    elif location.loaded_by == "init":
        own.append({"name": "model", "emptyDir": {}})
    return own


def _engine_volumes(spec: Spec) -> list[Object]:
    shm = {"medium": "Memory", "sizeLimit": str(spec.resources.shared_memory)}
    own: list[Object] = [{"name": "shm", "emptyDir": shm}]
    if (keys := spec.service.api_keys_secret_ref) is not None:
        items = [{"key": keys.key, "path": keys.key}]
        own.append({"name": "api-keys", "secret": {"secretName": keys.name, "items": items}})
    return own


def _pod_security() -> Object:
    """No fsGroup: replicas only read their claim, and kubelet would change the owner of every file in it."""
    user = containers.USER
    profile = {"type": "RuntimeDefault"}
    return {"runAsNonRoot": True, "runAsUser": user, "runAsGroup": user, "seccompProfile": profile}


def _gpu_toleration(spec: Spec) -> list[Object]:
    if spec.resources.gpus == 0:
        return []
    return [{"key": spec.resources.gpu_resource_name, "operator": "Exists", "effect": "NoSchedule"}]


def _spread(service: InferenceService, item: Mapping[str, Any]) -> Object:
    return {**item, "labelSelector": {"matchLabels": names.selector(service.name)}}


def _sidecars(extra: tuple[Mapping[str, Any], ...], spec: Spec) -> list[Object]:
    """Our security context beneath what a sidecar sets itself."""
    return [
        {**item, "securityContext": {**containers.security(spec), **item.get("securityContext", {})}} for item in extra
    ]
