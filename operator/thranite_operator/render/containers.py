"""Containers of the runtime's image: the engine, and those that check and fetch a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from thranite_operator import names
from thranite_operator.kinds import Object
from thranite_operator.render import flags
from thranite_operator.render.model import MOUNT, Location
from thranite_operator.render.objects import compact
from thranite_operator.settings import Settings
from thranite_operator.spec import InferenceService, Quantity, Spec

USER = 10001
# `thranite check` takes 80 MiB at most, `thranite download` 45 and what the kernel keeps of written files.
LOADER_MEMORY = "512Mi"
START_SECONDS = 3600  # a container that is not up by then is restarted; also the CRD's longest progress deadline
PROBE_PERIOD = 2  # seconds
CACHE, TMP = "/cache", "/tmp"


def engine(service: InferenceService, location: Location, settings: Settings) -> Object:
    spec = service.spec
    command = flags.serve(service, location)
    mounts = [_mount("shm", "/dev/shm"), *_model_mount(location, read_only=True)]
    if spec.service.api_keys_secret_ref is not None:
        mounts.append({**_mount("api-keys", "/etc/thranite/api-keys"), "readOnly": True})
    container = {
        **_runtime(names.ENGINE, command, spec, settings),
        "env": _env(spec, token=location.from_hub),
        "ports": [_port("http", names.HTTP_PORT), _port("admin", names.ADMIN_PORT)],
        "resources": _resources(spec),
        "startupProbe": _probe("/startupz", PROBE_PERIOD, 5, START_SECONDS // PROBE_PERIOD),
        "readinessProbe": _probe("/readyz", PROBE_PERIOD, 2, 3),
        "livenessProbe": _probe("/livez", 10, 5, 6),
        "lifecycle": {"preStop": {"exec": {"command": flags.drain()}}},
    }
    container["volumeMounts"] = [*_scratch(), *mounts, *spec.pod_template.volume_mounts]
    result: Object = compact(container)
    return result


def loaders(
    service: InferenceService, location: Location, settings: Settings, mounts: Sequence[Mapping[str, Any]]
) -> list[Object]:
    """First `check`, then `download`: a model that cannot be served is not fetched. `mounts`: the user's, of volumes
    that their pod has."""
    commands = {names.CHECK: flags.check(service, location), names.DOWNLOAD: flags.download(service, location)}
    spec = service.spec
    return [
        compact(
            {
                **_runtime(name, command, spec, settings),
                "env": _env(spec, token=True),
                "resources": _loader_resources(spec),
                "volumeMounts": [*_scratch(), *_model_mount(location, read_only=False), *mounts],
            }
        )
        for name, command in commands.items()
    ]


def security(spec: Spec) -> Object:
    """GPU containers keep a writable root: the container toolkit's hooks write into it."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": spec.resources.gpus == 0,
        "runAsNonRoot": True,
        "runAsUser": USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _runtime(name: str, command: list[str], spec: Spec, settings: Settings) -> Object:
    return {
        "name": name,
        "image": spec.engine.image or settings.runtime_image,
        "command": command[:2],
        "args": command[2:],
        "securityContext": security(spec),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def _env(spec: Spec, *, token: bool) -> list[Mapping[str, Any]]:
    """The user's variables win over ours of the same name."""
    ours: list[Mapping[str, Any]] = [
        {"name": "HOME", "value": TMP},
        {"name": "HF_HOME", "value": f"{CACHE}/huggingface"},
        {"name": "TRITON_CACHE_DIR", "value": f"{CACHE}/triton"},
        {"name": "CUDA_CACHE_PATH", "value": f"{CACHE}/cuda"},
    ]
    secret = spec.model.token_secret_ref
    if token and secret is not None:
        reference = {"secretKeyRef": {"name": secret.name, "key": secret.key}}
        ours.append({"name": "HF_TOKEN", "valueFrom": reference})
    users = {item["name"] for item in spec.engine.env}
    return [*(item for item in ours if item["name"] not in users), *spec.engine.env]


def _resources(spec: Spec) -> Object:
    wanted = spec.resources
    requests = {"cpu": _text(wanted.cpu), "memory": _text(wanted.memory)}
    limits = {"memory": _text(wanted.memory)}
    if wanted.gpus:
        gpu = {wanted.gpu_resource_name: str(wanted.gpus)}
        requests, limits = {**requests, **gpu}, {**limits, **gpu}
    return {"requests": requests, "limits": limits}


def _loader_resources(spec: Spec) -> Object:
    """No GPU; of CPU no limit, as for the engine. Where that serves from memory, the check sees the limit that it will
    have."""
    on_cpu = spec.resources.gpus == 0 or flags.extra_device(spec) == "cpu"
    memory = _text(spec.resources.memory) if on_cpu else LOADER_MEMORY
    return {"requests": {"cpu": "100m", "memory": memory}, "limits": {"memory": memory}}


def _text(quantity: Quantity | None) -> str | None:
    return None if quantity is None else str(quantity)


def _port(name: str, number: int) -> Object:
    return {"name": name, "containerPort": number, "protocol": "TCP"}


def _probe(path: str, period: int, timeout: int, failures: int) -> Object:
    get = {"path": path, "port": "admin"}
    return {"httpGet": get, "periodSeconds": period, "timeoutSeconds": timeout, "failureThreshold": failures}


def _mount(volume: str, path: str) -> Object:
    return {"name": volume, "mountPath": path}


def _scratch() -> list[Object]:
    return [_mount("tmp", TMP), _mount("cache", CACHE)]


def _model_mount(location: Location, *, read_only: bool) -> list[Object]:
    if not location.mounted:
        return []
    return [{**_mount("model", MOUNT), **({"readOnly": True} if read_only else {})}]
