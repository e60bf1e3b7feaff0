"""A launch that is made again hands C what Triton's own would, and is of the variant that Triton would take."""

from __future__ import annotations

import os
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime import jit
from triton.tools.tensor_descriptor import TensorDescriptor

from tests.support.triton_without_gpu import STREAM, Driver, triton_without_gpu
from thranite_kernels import launcher
from thranite_kernels._rms_norm import rms_norm_kernel
from thranite_kernels.catalog import entries
from thranite_kernels.compilations import Compilations
from thranite_kernels.launch import Launch
from thranite_kernels.launcher import NO_VARIANT, Launcher
from thranite_kernels.rms_norm import rms_norm
from thranite_kernels.target import Target, pretended

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter does not launch")


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    with triton_without_gpu(tmp_path) as driver:
        yield driver


@pytest.fixture
def by_triton(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels that Triton has launched."""
    names: list[str] = []
    run = jit.JITFunction.run

    def counted(kernel: Any, *args: Any, **options: Any) -> Any:
        names.append(kernel.__name__)
        return run(kernel, *args, **options)

    monkeypatch.setattr(jit.JITFunction, "run", counted)
    return names


def with_memory(value: Any) -> Any:
    """A catalogue's tensor is meta. (Memory that nobody touches is not there.)"""
    if isinstance(value, torch.Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
    if isinstance(value, TensorDescriptor):
        base = torch.empty(1 << 10, dtype=value.base.dtype)
        return TensorDescriptor(base, value.shape, value.strides, value.block_shape)
    return value


def test_every_kernel_gets_what_triton_would_hand_it(driver: Driver, by_triton: list[str]) -> None:
    """Grid, stream, function, metadata and each argument, for the whole catalogue."""
    kernels = set()
    target = Target(90, 132)
    with pretended(target):
        every = list(entries(target, quick=True))
    for entry in every:
        launch = replace(entry.launch, args={n: with_memory(value) for n, value in entry.launch.args.items()})
        launch.kernel[launch.grid](**launch.args, **launch.constants, **launch._options())
        launch.run()
        assert len(by_triton) in (1, 2), entry.name
        by_triton.clear()
        launch.run()
        assert by_triton == [], entry.name
        theirs, ours = driver.calls[0], driver.calls[-1]
        assert STREAM in ours
        assert ours == theirs, entry.name
        driver.calls.clear()
        kernels.add(launch.kernel.__name__)
    assert len(kernels) > 20


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["plain", "plain_ptr"], do_not_specialize_on_alignment=["loose", "loose_ptr"]
)
def some_kernel(told_ptr, told, plain_ptr, plain, loose_ptr, loose, c: tl.constexpr, d: tl.constexpr = 3):  # type: ignore[no-untyped-def]
    pass


NAMES = ("told_ptr", "told", "plain_ptr", "plain", "loose_ptr", "loose")
INTEGERS = (
    0,
    1,
    2,
    8,
    15,
    16,
    17,
    32,
    33,
    48,
    1 << 20,
    2**31 - 16,
    2**31 - 1,
    2**31,
    2**32,
    2**32 + 1,
    2**63,
    2**64 - 1,
)
MEMORY = torch.zeros(1 << 12, dtype=torch.uint8)
BASES = {dtype: torch.zeros(1 << 10, dtype=dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)}


def some_value(draw: random.Random) -> Any:
    """Of each kind that a kernel is given, and of each class that Triton tells apart."""
    kind = draw.randrange(8)
    if kind < 3:
        dtype = draw.choice((torch.float32, torch.bfloat16, torch.int32, torch.int64, torch.uint8))
        at = draw.choice((0, 8, 16, 24, 64))
        x = MEMORY[at : at + 64].view(dtype)
        return torch.nn.Parameter(x, requires_grad=False) if kind == 0 else x
    if kind < 6:
        value = draw.choice(INTEGERS)
        return -value if value < 2**63 and draw.random() < 0.2 else value
    if kind == 6:
        return draw.choice((None, True, False, 0.0, 1.0, 0.5))
    block = draw.choice(([16, 16], [16, 32], [32, 16], [1, 16, 16]))
    strides = [64] * (len(block) - 1) + [1]
    return TensorDescriptor(BASES[draw.choice(tuple(BASES))], [16] * len(block), strides, block)


def test_never_one_variant_where_triton_has_two() -> None:
    """Random arguments: those that a launcher takes for one variant, Triton describes in the same way."""
    backend = make_backend(GPUTarget("cuda", 90, 32))
    binder = jit.create_function_from_signature(some_kernel.signature, some_kernel.params, backend)
    draw = random.Random(0)
    described: dict[Any, set[Any]] = defaultdict(set)
    launchers: dict[Any, Launcher] = {}
    kinds = [some_value(draw) for _ in range(60)]
    for _ in range(40000):
        # Few types at once, else nothing would meet.
        values = [draw.choice(kinds[index * 10 : index * 10 + 10]) for index in range(len(NAMES))]
        types = tuple(map(type, values))
        if types not in launchers:
            launchers[types] = Launcher(some_kernel, dict(zip(NAMES, types, strict=True)), {"c": 1}, {})
            launchers[types].again.__globals__["current_device"] = lambda: 0
        variant = launchers[types].again((1,), *values)
        if variant is not NO_VARIANT:
            _, specialization, _ = binder(*values, c=1)
            described[types, variant].add(tuple(specialization))
    assert all(len(each) == 1 for each in described.values())
    assert len(described) > 1000


@pytest.mark.parametrize("value", [-1, 2**31, 2**40, 2**63])
def test_unusual_integers_are_left_to_triton(value: int) -> None:
    """Also where their value is not told."""
    types = dict.fromkeys(NAMES, int)
    again = Launcher(some_kernel, types, {"c": 1}, {}).again
    assert again((1,), *(5, 5, 5, value, 5, 5)) is NO_VARIANT


def some_launch(*, eps: float = 1e-6, offset: int = 0) -> None:
    x, weight = torch.zeros(3, 64 + offset)[:, offset:], torch.ones(64)
    rms_norm(x, weight, eps)


def test_triton_is_asked_once_a_variant(driver: Driver, by_triton: list[str]) -> None:
    """Values that it does not tell apart make no variant; an address off the multiples of 16 does."""
    with Compilations() as compiled:
        for eps in (1e-6, 1e-5, 1e-4):
            some_launch(eps=eps)
        assert len(by_triton) == len(compiled.kernels) == 1
        some_launch(offset=1)
        some_launch(offset=2)
        assert len(by_triton) == len(compiled.kernels) == 2
    assert len(driver.calls) == 5


def test_each_device_has_its_own(driver: Driver, by_triton: list[str]) -> None:
    """A compiled kernel is loaded into one device's memory."""
    first, second = driver.device, object()
    for device in (first, second, first, second):
        driver.device = device
        some_launch()
    assert len(by_triton) == 2
    functions = [call[4] for call in driver.calls]
    assert functions[0] == functions[2] != functions[1] == functions[3]


def test_the_stream_is_the_current_one(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it has changed, as it does while a graph is captured."""
    streams = iter((1, 2))
    monkeypatch.setattr(launcher, "current_stream", lambda device: next(streams))
    for _ in range(3):
        some_launch()
    assert [call[3] for call in driver.calls] == [STREAM, 1, 2]


@pytest.mark.parametrize("hook", ["launch_enter_hook", "launch_exit_hook"])
def test_hooks_around_launches_are_called(driver: Driver, by_triton: list[str], hook: str) -> None:
    """By Triton, for as long as there are any."""
    chain = getattr(triton.knobs.runtime, hook)
    for _ in range(2):
        some_launch()
    chain.add(print)
    try:
        some_launch()
    finally:
        chain.remove(print)
    some_launch()
    assert len(by_triton) == 2


def test_hooks_before_a_kernel_are_called(driver: Driver, by_triton: list[str]) -> None:
    """Triton has such hooks for each kernel."""
    called: list[object] = []
    hooks = rms_norm_kernel.pre_run_hooks
    for _ in range(2):
        some_launch()
    hooks.append(lambda **arguments: called.append(arguments))
    try:
        some_launch()
    finally:
        hooks.clear()
    assert len(by_triton) == 2
    assert len(called) == 1


def test_an_unknown_triton_launches_by_itself(
    driver: Driver, by_triton: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So does one below which torch has no way to tell the stream."""
    monkeypatch.setattr(launcher, "KNOWN_VERSIONS", ())
    for _ in range(3):
        some_launch()
    assert len(by_triton) == len(driver.calls) == 3


def test_an_empty_grid_is_no_launch(driver: Driver) -> None:
    Launch(some_kernel, (4, 0), {}, {}).run()
    assert driver.calls == []


def test_arguments_that_triton_would_refuse_are_refused(driver: Driver) -> None:
    """One is missing."""
    with pytest.raises(TypeError):
        Launch(some_kernel, (1,), {"told_ptr": MEMORY}, {"c": 1}).run()
