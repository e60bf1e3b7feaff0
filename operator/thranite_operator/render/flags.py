"""The runtime's command lines. `tests/contract` parses them with the runtime's own parser."""

from __future__ import annotations

import re

from thranite_operator import names
from thranite_operator.render.model import Location
from thranite_operator.spec import InferenceService, Spec


def serve(service: InferenceService, location: Location) -> list[str]:
    spec = service.spec
    flags = [
        *("thranite", "serve", location.argument),
        f"--served-model-name={service.model_name}",
        f"--port={names.HTTP_PORT}",
        f"--admin-port={names.ADMIN_PORT}",
        f"--drain-timeout={spec.drain.timeout_seconds}",
        *(_revision(spec) if location.from_hub else []),
        *_engine(spec),
        *_device(spec),
    ]
    if spec.service.api_keys_secret_ref is not None:
        flags.append(f"--api-key-file={api_keys_path(spec)}")
    return [*flags, *spec.engine.extra_args]


def api_keys_path(spec: Spec) -> str:
    keys = spec.service.api_keys_secret_ref
    return f"/etc/thranite/api-keys/{keys.key}" if keys else ""


def check(service: InferenceService, location: Location) -> list[str]:
    spec = service.spec
    return ["thranite", "check", location.repository, *_revision(spec), *_engine(spec), *_device(spec), *_gpu(spec)]


def download(service: InferenceService, location: Location) -> list[str]:
    target = ["--to", location.argument, f"--admin-port={names.ADMIN_PORT}"]
    return ["thranite", "download", location.repository, *_revision(service.spec), *target]


def drain() -> list[str]:
    return ["thranite", "drain", f"--admin-port={names.ADMIN_PORT}"]


def _revision(spec: Spec) -> list[str]:
    return [f"--revision={spec.model.revision}"] if spec.model.revision else []


def _engine(spec: Spec) -> list[str]:
    """Flags of the engine that `serve` and `check` share."""
    engine = spec.engine
    given = {
        "max-model-len": engine.max_model_len,
        "max-num-batched-tokens": engine.max_batched_tokens,
        "max-num-seqs": engine.max_sequences,
        "gpu-memory-utilization": engine.kv_cache_memory_fraction,
    }
    chosen = [f"--{name}={value}" for name, value in given.items() if value is not None]
    return [f"--tensor-parallel-size={engine.tensor_parallel_size}", f"--dtype={engine.dtype}", *chosen]


def _device(spec: Spec) -> list[str]:
    """CPU where no GPU is asked for, unless --device among the extra arguments says otherwise."""
    return ["--device=cpu"] if spec.resources.gpus == 0 and extra_device(spec) is None else []


def extra_device(spec: Spec) -> str | None:
    """The device that the extra arguments name, in either spelling."""
    args = spec.engine.extra_args
    for index, arg in enumerate(args):
        if arg.startswith("--device="):
            return arg.removeprefix("--device=")
        if arg == "--device" and index + 1 < len(args):
            return args[index + 1]
    return None


def _gpu(spec: Spec) -> list[str]:
    """The device to check against: the one that serves; a GPU's memory is known where its product name tells it."""
    device = extra_device(spec)
    if device in ("cpu", "null"):
        return [f"--device={device}"]
    product, resource = spec.resources.gpu_product or "", spec.resources.gpu_resource_name
    # A MIG slice is the resource (nvidia.com/mig-1g.10gb), or stands last in the product (…-80GB-MIG-1g.10gb); a
    # GH200-480GB tells its CPU's memory.
    sizes = re.findall(r"(\d+)GB", ("" if "GH200" in product else product) + resource, re.IGNORECASE)
    return [f"--gpu-memory={sizes[-1]}GB"] if sizes and spec.resources.gpus > 0 else []
