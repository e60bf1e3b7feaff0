"""Triton's launching for NVIDIA GPUs without one: its binder and its launcher, and in place of C a list of calls."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia
from triton.compiler import CompiledKernel
from triton.knobs import HookChain

from thranite_kernels import launch, launcher

STREAM = 7


class Driver(nvidia.CudaDriver):  # type: ignore[misc]
    """`calls`: what C's `launch` was called with. Kernels of `device` have nothing in common with a real device's."""

    def __init__(self) -> None:
        self.device: object = object()
        self.calls: list[Any] = []
        self.launcher_cls = nvidia.CudaLauncher
        functions = count(100)
        self.utils = SimpleNamespace(
            launch=self._launch,
            load_binary=lambda *_: ("module", next(functions), 0, 0, 1024),
            unload_module=lambda module: None,
            get_device_properties=lambda device: {"max_shared_mem": 1 << 20},
            build_signature_metadata=bytes_of,
            fill_tma_descriptor=lambda *facts: ("map", *facts),
            fill_tma_descriptor_tiled=lambda *facts: ("map", *facts),
        )
        self.get_current_device = lambda: self.device
        self.get_current_stream = lambda device: STREAM

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def _launch(self, *arguments: Any) -> None:
        self.calls.append(as_c_reads(arguments))


def bytes_of(signature: list[str]) -> bytes:
    return repr(signature).encode()


def as_c_reads(value: Any) -> Any:
    """C asks a tensor for its address; a hook that calls nobody is none, and what it would be told does not matter."""
    if isinstance(value, torch.Tensor):
        return value.data_ptr()
    if isinstance(value, tuple | list):
        return [as_c_reads(each) for each in value]
    if type(value).__name__ == "LazyDict" or (isinstance(value, HookChain) and not value.calls):
        return None
    return value


@contextmanager
def triton_without_gpu(folder: Path) -> Iterator[Driver]:
    """Within it kernels are launched on a new `Driver`, and nothing is compiled. `folder` takes files."""
    driver = Driver()
    kernels: set[int] = set()
    changed: list[Any] = []
    compile_really = triton.compiler.compile

    def compile_nothing(src: Any, target: GPUTarget, options: dict[str, Any]) -> CompiledKernel:
        if id(src.fn) not in kernels:
            kernels.add(id(src.fn))
            changed.append(src.fn)
        return compiled(src, target, options, folder / str(len(list(folder.iterdir()))))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton.compiler, "compile", compile_nothing)
        patch.setattr(nvidia, "library_dirs", list)
        patch.setattr(nvidia, "compile_module_from_src", lambda **_: driver.utils, raising=False)
        for name in ("PyKernelArg", "ARG_CONSTEXPR", "ARG_KERNEL", "ARG_TUPLE"):
            patch.setattr(nvidia, name, lambda **facts: facts, raising=False)
        patch.setattr(launcher, "current_device", driver.get_current_device)
        patch.setattr(launcher, "current_stream", driver.get_current_stream)
        patch.setattr(launch, "_launchers", {})
        triton.runtime.driver.set_active(driver)
        try:
            yield driver
        finally:
            triton.runtime.driver.set_active(None)
            for kernel in changed:
                kernel.compile = compile_really


def compiled(src: Any, target: GPUTarget, options: dict[str, Any], folder: Path) -> CompiledKernel:
    """A kernel without code."""
    folder.mkdir()
    maps = [tensor_map_facts(kind) for kind in src.signature.values() if str(kind).startswith("tensordesc")]
    facts = {
        **options,
        "target": target.__dict__,
        "name": src.fn.__name__,
        "hash": folder.name,
        "shared": 1024,
        "tmem_size": 0,
        "warp_size": 32,
        "global_scratch_size": 0,
        "global_scratch_align": 1,
        "profile_scratch_size": 0,
        "profile_scratch_align": 1,
        "tensordesc_meta": maps or None,
    }
    files = {"kernel.json": folder / "kernel.json", "kernel.cubin": folder / "kernel.cubin"}
    files["kernel.json"].write_text(json.dumps(facts, default=str))
    files["kernel.cubin"].write_bytes(b"")
    return CompiledKernel(src, files, folder.name)


def tensor_map_facts(kind: str) -> dict[str, Any]:
    """What compiling says of a parameter such as tensordesc<bf16[64, 128]>."""
    found = re.search(r"\[([^\]]*)\]", kind)
    assert found is not None
    block = [int(size) for size in found[1].split(",")]
    return {"swizzle": 3, "elem_size": 2, "elem_type": 10, "block_size": block, "fp4_padded": False}
