"""One kernel launch as a value: run it on the device, write it down, or compile it for a named target without a GPU.

Host wrappers build `Launch`es and run them. The catalogue builds the same launches from meta tensors, so what the
compile tests see is exactly what the wrappers would launch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from .cache_keys import compute_callees_first
from .launcher import Launcher

LOG2E = 1.4426950408889634

compute_callees_first()


@dataclass(slots=True)  # to freeze it would make it twice as slow to make
class Launch:
    """`kernel[grid](**args, **constants)`; `args` by name, in any order, `constants` its constexpr parameters."""

    kernel: Any
    grid: tuple[int, ...]
    args: Mapping[str, Any]
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 2
    options: Mapping[str, Any] = field(default_factory=dict)

    def run(self) -> None:
        """Enqueue on the current stream; an empty grid is no launch."""
        if 0 in self.grid:
            return
        if _recorder is not None:
            _recorder(self)
            return
        args, constants = self.args, self.constants
        key = (
            id(self.kernel),
            self.num_warps,
            self.num_stages,
            *args,
            *map(type, args.values()),
            *constants,
            *constants.values(),
            *self.options.items(),
        )
        launcher = _launchers.get(key)
        if launcher is None:
            types = {name: type(value) for name, value in args.items()}
            launcher = _launchers[key] = Launcher(self.kernel, types, constants, self._options())
        unknown = launcher.again(self.grid, *args.values())
        if unknown is not None:
            launcher.first(unknown, self.grid, args.values())

    def _options(self) -> dict[str, Any]:
        """Compiler options; fused multiply-add is named because Triton's default for it changes with its version."""
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": True,
            **({"launch_pdl": True} if self.constants.get("PDL") else {}),
            **self.options,
        }

    def compile(self, capability: int) -> Any:
        """Compile for `sm_<capability>` (80, 89, 90, 100); returns Triton's compiled kernel, with its metadata.

        Triton's own launcher does it, for a device that it is told of: what lies in its cache then is what a launch
        with such arguments finds there.
        """
        from triton.runtime import driver

        driver.set_active(_NoDevice(capability))
        try:
            return self.kernel.run(**self.args, **self.constants, **self._options(), grid=self.grid, warmup=True)
        finally:
            driver.set_active(None)  # it looks for a real one when it is next asked


_launchers: dict[tuple[Any, ...], Launcher] = {}
"""By all that a `Launcher` is made of. They keep their kernels, whose ids no other will have."""

_recorder: Callable[[Launch], None] | None = None


@contextmanager
def recording(record: Callable[[Launch], None]) -> Iterator[None]:
    """Within it no launch reaches a device: each is given to `record`."""
    global _recorder
    before, _recorder = _recorder, record
    try:
        yield
    finally:
        _recorder = before


def tensor_map(base: torch.Tensor, shape: list[int], strides: list[int], block: list[int]) -> Any:
    """What a kernel reads `base` through in blocks (Triton's tensor descriptor)."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    if _recorder is not None:  # a tensor without memory has no address to check
        base = torch.empty(0, dtype=base.dtype, device="meta")
    return TensorDescriptor(base, shape, strides, block)


def swizzled_map(matrix: torch.Tensor, block: list[int]) -> Any:
    """The same for kernels in Gluon, of all of a 16-bit tensor: swizzled in shared memory as wgmma reads it."""
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    base = matrix if _recorder is None else Pointer(matrix.dtype, True)  # torch may refuse to tell an address
    return TensorDescriptor(base, list(matrix.shape), list(matrix.stride()), block, swizzled_layout(matrix.dim()))


@dataclass(frozen=True, slots=True)
class Pointer:
    """Stands for a tensor: Triton asks arguments of this kind for their type and address."""

    dtype: torch.dtype
    aligned: bool

    def data_ptr(self) -> int:
        return 16 if self.aligned else 1


@cache
def swizzled_layout(rank: int) -> Any:
    """Of 16-bit tiles in shared memory, by 128 bytes."""
    from triton.experimental.gluon.language import NVMMASharedLayout

    return NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=rank)


class _NoDevice:
    """What Triton's launcher asks of a driver before it compiles."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_device(self) -> str:
        """Triton keeps kernels and targets by this; it is no index of a real device."""
        return f"sm_{self._capability}"

    def get_current_stream(self, device: object) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self._capability, 32)


def next_power_of_2(n: int) -> int:
    """Smallest power of two not below `n` (1 for `n` of 0 or 1)."""
    return 1 << max(n - 1, 0).bit_length()


def cdiv(a: int, b: int) -> int:
    """`ceil(a / b)` for positive integers."""
    return -(-a // b)


def require(condition: bool, message: str) -> None:
    """Refuse arguments a kernel would read wrongly; wrappers check layouts, never values on the device."""
    if not condition:
        raise ValueError(message)


def int32(values: list[int] | torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """`values` as a contiguous int32 tensor on `device`."""
    return torch.as_tensor(values, dtype=torch.int32, device=device).contiguous()
