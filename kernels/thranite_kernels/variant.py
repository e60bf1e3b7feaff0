"""What Triton tells variants of a kernel by: launches that need one compilation are equal here.

Triton compiles a kernel anew for a new type, for an integer of 1 or a multiple of 16, for an address that is no
multiple of 16 bytes, and for each constant. A variant has the least values that stand for all alike; it is plain data,
so other processes can compile it.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from .launch import Launch, Pointer, swizzled_map


@dataclass(frozen=True, slots=True)
class Map:
    """Stands for a tensor map."""

    dtype: torch.dtype
    block: tuple[int, ...]
    swizzled: bool  # `launch.swizzled_map`'s


@dataclass(frozen=True, slots=True)
class Variant:
    """One compilation."""

    module: str
    kernel: str
    arguments: tuple[tuple[str, Any], ...]
    constants: tuple[tuple[str, Any], ...]
    num_warps: int
    num_stages: int
    options: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, launch: Launch) -> Variant:
        """The variant that a launch needs."""
        parameters = _parameters(launch.kernel)
        return cls(
            launch.kernel.fn.__module__,
            launch.kernel.fn.__name__,
            tuple((name, representative(parameters[name], value)) for name, value in launch.args.items()),
            tuple(sorted(launch.constants.items())),
            launch.num_warps,
            launch.num_stages,
            tuple(sorted(launch.options.items())),
        )

    def launch(self) -> Launch:
        """One that needs this variant, of values without memory: to be compiled, not run."""
        kernel = getattr(importlib.import_module(self.module), self.kernel)
        args = {name: _argument(value) for name, value in self.arguments}
        return Launch(kernel, (1,), args, dict(self.constants), self.num_warps, self.num_stages, dict(self.options))


@cache
def _parameters(kernel: Any) -> dict[str, Any]:
    return {parameter.name: parameter for parameter in kernel.params}


def representative(parameter: Any, value: Any) -> Any:
    """The value that stands for all that Triton treats as it does `value`. Allocations start at multiples of 512 bytes.

    `parameter`: Triton's, of the kernel.
    """
    told = not parameter.do_not_specialize
    by_alignment = told and not parameter.do_not_specialize_on_alignment
    if isinstance(value, torch.Tensor):
        return Pointer(value.dtype, by_alignment and int(value.storage_offset()) * value.itemsize % 16 == 0)
    if isinstance(value, float):
        return 0.5
    if isinstance(value, int) and not isinstance(value, bool):
        return 1 if told and value == 1 else _least(value) + (0 if by_alignment and value % 16 == 0 else 1)
    if hasattr(value, "block_shape"):
        return Map(value.base.dtype, tuple(value.block_shape), hasattr(value, "layout"))
    return value


def _least(value: int) -> int:
    """A multiple of 16 of the integer type that Triton gives `value`."""
    if -(2**31) <= value < 2**31:
        return 16
    return 2**31 if value < 2**63 else 2**63


def _argument(value: Any) -> Any:
    if not isinstance(value, Map):
        return value
    rank = len(value.block)
    if value.swizzled:
        return swizzled_map(torch.empty([512] * rank, dtype=value.dtype, device="meta"), list(value.block))
    from triton.tools.tensor_descriptor import TensorDescriptor

    strides = [512] * (rank - 1) + [1]
    return TensorDescriptor(torch.empty(0, dtype=value.dtype, device="meta"), [512] * rank, strides, list(value.block))


def compile_variant(variant: Variant, capability: int) -> bool:
    """Into Triton's cache; False: it was there."""
    from .compilations import CompiledAnew

    with CompiledAnew() as anew:
        variant.launch().compile(capability)
    return anew.count > 0
