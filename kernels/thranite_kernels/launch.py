"""One kernel launch as a value: run it on the device, or compile it for a named target without a GPU.

Host wrappers build `Launch`es and run them. The catalogue builds the same launches from meta tensors, so what the
compile tests (and a cache filled for an image) see is exactly what the wrappers would launch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from .target import OVERLAP_CAPABILITY

LOG2E = 1.4426950408889634


@dataclass(frozen=True, slots=True)
class Launch:
    """`kernel[grid](**args, **constants)`; `args` in the kernel's order, `constants` its constexpr parameters."""

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
        self.kernel[self.grid](**self.args, **self.constants, **self._options())

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

        The signature is derived as the just-in-time launcher derives it: integers specialise on 1 and on multiples of
        16, pointers on 16-byte alignment, unless the kernel says otherwise.
        """
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource
        from triton.compiler.compiler import make_backend

        target = GPUTarget("cuda", capability, 32)
        backend = make_backend(target)
        launch = self._for(capability)
        signature, constants, attributes = _signature(launch.kernel, {**launch.args, **launch.constants}, backend)
        source = ASTSource(launch.kernel, signature, constants, attributes)
        return triton.compile(source, target=target, options=launch._options())

    def _for(self, capability: int) -> Launch:
        """As a device of this capability would run it: `PDL` is the device's, and meta tensors have none."""
        if "PDL" not in self.constants:
            return self
        return replace(self, constants={**self.constants, "PDL": capability >= OVERLAP_CAPABILITY})


def _signature(kernel: Any, values: Mapping[str, Any], backend: Any) -> tuple[dict[str, str], dict[Any, Any], Any]:
    """Types, constants and alignment attributes of each parameter, as `JITFunction.run` would derive them."""
    from triton._C.libtriton import native_specialize_impl

    signature: dict[str, str] = {}
    constants: dict[Any, Any] = {}
    attributes: dict[Any, Any] = {}
    for index, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if parameter.is_constexpr:
            kind, key = "constexpr", None
        else:
            kind, key = native_specialize_impl(
                type(backend),
                value,
                parameter.is_const,
                not parameter.do_not_specialize,
                not parameter.do_not_specialize_on_alignment,
            )
        signature[parameter.name] = kind
        if kind == "constexpr":
            constants[(index,)] = value
        elif isinstance(key, str):
            attributes[(index,)] = backend.parse_attr(key)
    return signature, constants, attributes


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
