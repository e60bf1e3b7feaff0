"""A GPU that computes nothing: tensors have shapes and places but no values, and launches are written down.

What Triton would compile depends on a launch's arguments alone: their types, whether an integer is 1 or a multiple of
16, whether an address is a multiple of 16 bytes, and the constants. All of it is known without a device, so a whole
engine can be run to see which variants it needs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from triton.tools.tensor_descriptor import TensorDescriptor

from thranite.attention import triton as attention
from thranite.layers import dense
from thranite.runner import cuda_graphs
from thranite.runner.sampling_transfer import HostCopies
from thranite_kernels import target
from thranite_kernels.launch import Launch
from thranite_kernels.paged_prefill import uses_tensor_maps

DEVICE = torch.device("cuda", 0)
Key = tuple[Any, ...]


class TensorMap:
    """Stands for a tensor map of a cache, whose making would ask for an address."""


class Pinned:
    """A host's tensor on its way to the device. torch would keep the value of one that has a single element, and ask
    the driver for it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def to(self, device: torch.device, **_: Any) -> torch.Tensor:
        return torch.empty(self._tensor.shape, dtype=self._tensor.dtype, device=device)


@dataclass
class Launches:
    """Variants launched so far, in order of their first launch."""

    keys: dict[Key, None] = field(default_factory=dict)

    def record(self, launch: Launch) -> None:
        if 0 not in launch.grid:
            self.keys[key_of(launch)] = None


def key_of(launch: Launch) -> Key:
    """What Triton tells variants of a kernel by, as `Launch.compile` has it from Triton itself."""
    parameters = {parameter.name: parameter for parameter in launch.kernel.params}
    arguments = tuple((name, specialisation(parameters[name], value)) for name, value in launch.args.items())
    options = tuple(sorted({**launch.options, "warps": launch.num_warps, "stages": launch.num_stages}.items()))
    return (launch.kernel.__name__, arguments, tuple(sorted(launch.constants.items())), options)


def specialisation(parameter: Any, value: Any) -> tuple[str, str]:
    """(type, what more is known of the value). Allocations start at multiples of 512 bytes."""
    if value is None:
        return "constexpr", "None"
    if isinstance(value, TensorMap):
        return "tensordesc", ""
    if isinstance(value, TensorDescriptor):
        return "tensordesc", f"{value.base.dtype} {value.block_shape}"
    if isinstance(value, torch.Tensor):
        told = not (parameter.do_not_specialize or parameter.do_not_specialize_on_alignment)
        aligned = value.storage_offset() * value.itemsize % 16 == 0
        return str(value.dtype), "D" if told and aligned else ""
    if isinstance(value, float):
        return "fp32", ""
    if parameter.do_not_specialize:
        return integer_type(value), ""
    if value == 1:
        return "constexpr", "1"
    told = not parameter.do_not_specialize_on_alignment
    return integer_type(value), "D" if told and value % 16 == 0 else ""


def integer_type(value: int) -> str:
    if -(2**31) <= value < 2**31:
        return "i32"
    return "i64" if value < 2**63 else "u64"


@contextlib.contextmanager
def pretended_gpu(patch: pytest.MonkeyPatch) -> Iterator[Launches]:
    """Everything made and run within is on the pretended GPU, an H200 as far as tables of tiles ask."""
    launches = Launches()
    dense.gemm_scratch.cache_clear()
    dense.stream_scratch.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True), patch.context() as here:
        here.setattr(Launch, "run", lambda launch: launches.record(launch))
        here.setattr(target, "_cuda_target", lambda index: target.Target(90, 132))
        here.setattr(attention, "kv_descriptor", lambda kv, tiles: TensorMap() if uses_tensor_maps(kv, tiles) else None)
        here.setattr(torch.Tensor, "pin_memory", lambda tensor: Pinned(tensor))
        here.setattr(FakeTensor, "tolist", _zeros)
        here.setattr(FakeTensor, "numpy", lambda tensor: np.array(_zeros(tensor), str(tensor.dtype).split(".")[1]))
        here.setattr(HostCopies, "__init__", _keep)
        here.setattr(torch.cuda, "graph_pool_handle", lambda: None)
        here.setattr(torch.cuda, "synchronize", lambda device: None)
        here.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
        here.setattr(torch.cuda, "graph", lambda graph, **options: contextlib.nullcontext())
        here.setattr(cuda_graphs.DecodeGraphs, "_drop_slow_sizes", lambda self: None)
        yield launches
    dense.gemm_scratch.cache_clear()
    dense.stream_scratch.cache_clear()


def _zeros(tensor: torch.Tensor) -> Any:
    """In place of values that there are none of."""
    zero: Any = 0.0 if tensor.is_floating_point() else 0
    for size in reversed(tensor.shape):
        zero = [zero] * size
    return zero


def _keep(copies: HostCopies, tensors: list[torch.Tensor]) -> None:
    copies._event, copies._host = None, list(tensors)
