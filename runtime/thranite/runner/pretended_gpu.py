"""A GPU that computes nothing: tensors have shapes and places but no values, and launches are written down.

What Triton would compile depends on a launch's arguments alone, and all of it is known without a device. So a whole
engine can be made and run on any machine to see which variants of kernels it needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from thranite.layers import dense, fused, gated_products
from thranite.runner.cuda_graphs import DecodeGraphs
from thranite.runner.sampling_transfer import HostCopies
from thranite_kernels.launch import recording
from thranite_kernels.target import Target, pretended
from thranite_kernels.variant import Variant

DEVICE = torch.device("cuda", 0)


class _Pinned:
    """A host's tensor on its way to the device. torch would keep the value of one that has a single element, and ask
    the driver for it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def to(self, device: torch.device, **_: Any) -> torch.Tensor:
        return torch.empty(self._tensor.shape, dtype=self._tensor.dtype, device=device)


@contextmanager
def pretended_gpu(target: Target) -> Iterator[dict[Variant, None]]:
    """Everything made and run within, by this thread alone, is on the pretended GPU, whatever the machine has.

    Gives the variants launched so far, in the order of their first launch.
    """
    variants: dict[Variant, None] = {}
    with ExitStack() as stack:
        stack.callback(_forget_scratch)
        _forget_scratch()
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(recording(lambda launch: variants.setdefault(Variant.of(launch))))
        stack.enter_context(pretended(target))
        for owner, name, replacement in _replacements():
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield variants


def _replacements() -> list[tuple[Any, str, Any]]:
    """What would ask a driver, or for values, and what stands in its place."""
    return [
        (torch.Tensor, "pin_memory", lambda tensor: _Pinned(tensor)),
        (FakeTensor, "tolist", _zeros),
        (FakeTensor, "numpy", lambda tensor: np.array(_zeros(tensor), str(tensor.dtype).removeprefix("torch."))),
        (HostCopies, "__init__", _keep),
        (torch.cuda, "mem_get_info", lambda device: (1 << 40, 1 << 40)),
        (dense, "tuned_product", lambda x, weight, onto=None: None),
        (gated_products, "is_faster", lambda x, weight: True),
        (gated_products, "_faster", {}),
        *empty_graphs(),
    ]


def empty_graphs() -> list[tuple[Any, str, Any]]:
    """What captures graphs that replay nothing, on no device. Owner, name and replacement."""
    return [
        (torch.cuda, "graph_pool_handle", lambda: None),
        (torch.cuda, "synchronize", lambda device: None),
        (torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None)),
        (torch.cuda, "graph", lambda graph, **options: nullcontext()),
        (DecodeGraphs, "_drop_slow_sizes", lambda graphs: None),  # there is no time to be measured
    ]


def _zeros(tensor: torch.Tensor) -> Any:
    """In place of values that there are none of."""
    assert tensor.device.type == "cpu", "the host asks a GPU for values: it would wait for all that was launched"
    zero: Any = 0.0 if tensor.is_floating_point() else 0
    for size in reversed(tensor.shape):
        zero = [zero] * size
    return zero


def _keep(copies: HostCopies, tensors: list[torch.Tensor]) -> None:
    copies._event, copies._host = None, [torch.empty_like(tensor, device="cpu") for tensor in tensors]


def _forget_scratch() -> None:
    dense.gemm_scratch.cache_clear()
    dense.stream_scratch.cache_clear()
    fused.fused_scratch.cache_clear()
