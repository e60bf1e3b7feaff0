"""Launches of what Triton has launched before, without asking it again which variant of a kernel they need.

`kernel[grid](...)` binds the arguments, describes each, and makes strings of all that to look up the compiled kernel:
15 to 30 microseconds a launch, against 4 to 9 here. Few facts decide what the descriptions say. So Triton makes the
first launch of a variant, and gives the compiled kernel; a `Launcher` keeps it by those facts and calls it later on.

The facts are never fewer than what Triton tells variants by; `tests/kernels/test_launcher.py` holds both beside each
other. Addresses go to the kernel as they are; Triton asks the driver whether the device reaches them. Settings of the
whole process (`triton.knobs`: debug, instrumentation) count as they were at a variant's first launch, but for hooks
around launches: while there are any, Triton makes every launch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import NoneType
from typing import Any

import torch
import triton
from triton.compiler import CompiledKernel
from triton.runtime import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

KNOWN_VERSIONS = ("3.6", "3.7", "3.8", "3.9")
"""Those of Triton that are known to launch in this way; any other makes all launches."""

GLUON_MAP = ("triton.experimental.gluon.nvidia.hopper", "TensorDescriptor")
"""By name: Gluon takes its time to load, and few processes need it."""

NO_VARIANT: tuple[Any, ...] = ()
"""For launches that are Triton's to make each time."""

current_device: Callable[[], int] | None = getattr(torch._C, "_cuda_getDevice", None)
current_stream: Callable[[int], int] | None = getattr(torch._C, "_cuda_getCurrentRawStream", None)


class Launcher:
    """Launches `kernel` with one set of constants and options, and one type for each argument.

    `again(grid, *arguments)` launches what is known and returns None. Otherwise it returns the variant that the launch
    needs, for `first` to launch it. A grid has one to three numbers, none of them 0.
    """

    def __init__(
        self, kernel: Any, types: Mapping[str, type], constants: Mapping[str, Any], options: Mapping[str, Any]
    ) -> None:
        """`types`: of the arguments, in the order in which they will come."""
        self._kernel, self._names = kernel, tuple(types)
        self._fixed = {**constants, **options}
        self._compiled: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        self.again = _again(kernel, types, constants, self._compiled) or _nothing_known

    def first(self, variant: tuple[Any, ...], grid: tuple[int, ...], arguments: Iterable[Any]) -> None:
        """Launch by Triton, which compiles the variant or finds it in its cache."""
        compiled = self._kernel[grid](**dict(zip(self._names, arguments, strict=True)), **self._fixed)
        if variant and isinstance(compiled, CompiledKernel) and compiled.metadata.target.backend == "cuda":
            # The kernel itself is kept too: with it, its module would be unloaded.
            self._compiled[variant] = compiled.run, compiled.function, compiled.packed_metadata, compiled


def _nothing_known(grid: tuple[int, ...], *arguments: Any) -> tuple[Any, ...]:
    return NO_VARIANT


def _again(
    kernel: Any, types: Mapping[str, type], constants: Mapping[str, Any], compiled: Mapping[Any, Any]
) -> Callable[..., tuple[Any, ...] | None] | None:
    """`Launcher.again`; None where Triton has to make all launches."""
    if not isinstance(kernel, JITFunction) or not _is_known():
        return None
    space: dict[str, Any] = {
        "known": compiled.get,
        "current_device": current_device,
        "current_stream": current_stream,
        "pre_run_hooks": kernel.pre_run_hooks,
        "hooks": triton.knobs.runtime,
        "NO_VARIANT": NO_VARIANT,
    }
    names = {name: f"a{index}" for index, name in enumerate(types)}
    source = _Source()
    for index, parameter in enumerate(kernel.params):
        if parameter.name not in types:
            space[f"c{index}"] = constants.get(parameter.name, parameter.default)
            source.passed.append(f"c{index}")
        elif parameter.is_constexpr or not source.take(parameter, names[parameter.name], types[parameter.name]):
            return None
    exec(source.text(names.values()), space)
    return space["again"]  # type: ignore[no-any-return]


@dataclass(slots=True)
class _Source:
    """`Launcher.again` is written out for its kernel and types, as Triton's own binder is: a loop over arguments takes
    four times as long.

    Triton tells variants by a tensor's type and whether its address is a multiple of 16; by an integer's width, whether
    it is 1, and whether it is a multiple of 16; by a tensor map's type, block and, in Gluon, layout. Integers of more
    than 31 bits and negative ones are left to it.
    """

    addresses: list[str] = field(default_factory=list)  # statements
    aligned: list[str] = field(default_factory=list)  # names of addresses that may have to be multiples of 16
    integers: list[str] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)  # to the compiled kernel, in its order

    def take(self, parameter: Any, name: str, kind: type) -> bool:
        """One argument, named `name`, of a `parameter` of Triton's. False: its type is not known here."""
        told = not parameter.do_not_specialize
        if kind is torch.Tensor or kind is torch.nn.Parameter:
            address = f"{name}_at"
            self.addresses.append(f"{address} = {name}.data_ptr()")
            self.facts.append(f"{name}.dtype")
            if told and not parameter.do_not_specialize_on_alignment:
                self.aligned.append(address)
            name = address
        elif kind is int:
            self.integers.append(name)
            if told:
                self.facts.append(f"1 if {name} == 1 else {name} & 15 and 2")
        elif kind is TensorDescriptor:
            self.facts += [f"{name}.base.dtype", f"tuple({name}.block_shape)"]
        elif (kind.__module__, kind.__name__) == GLUON_MAP:
            self.facts += [f"{name}.base.dtype", f"tuple({name}.block_shape)", f"{name}.layout"]
        elif kind not in (float, bool, NoneType):
            return False
        self.passed.append(name)
        return True

    def text(self, names: Iterable[str]) -> str:
        facts = ["device", *self.facts]
        if self.aligned:
            each = ", ".join(f"{address} & 15 == 0" for address in self.aligned)
            facts.append(f"({' | '.join(self.aligned)}) & 15 and ({each},)")
        lines = [
            f"def again({', '.join(['grid', *names])}):",
            *self.addresses,
            *([f"if ({' | '.join(self.integers)}) >> 31: return NO_VARIANT"] if self.integers else []),
            "device = current_device()",
            f"variant = ({', '.join(facts)},)",
            "kernel = known(variant)",
            "if kernel is None or pre_run_hooks: return variant",
            "if getattr(hooks.launch_enter_hook, 'calls', hooks.launch_enter_hook): return variant",
            "if getattr(hooks.launch_exit_hook, 'calls', hooks.launch_exit_hook): return variant",
            "run, function, metadata, _ = kernel",
            "dims = len(grid)",
            "run(grid[0], grid[1] if dims > 1 else 1, grid[2] if dims > 2 else 1, current_stream(device),"
            f" function, metadata, None, None, None, {', '.join(self.passed)})",
        ]
        return "\n ".join(lines)


def _is_known() -> bool:
    """Whether Triton, and torch below it, are as this module needs them."""
    version = ".".join(triton.__version__.split(".")[:2])
    return version in KNOWN_VERSIONS and current_device is not None and current_stream is not None
