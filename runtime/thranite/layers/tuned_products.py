"""x Wᵀ by the fastest of cuBLASLt's algorithms, for the row counts that graphs are captured for.

cuBLAS chooses by rule, and not always well. llama-8b's products on an H200 in bf16, microseconds a layer, by rule and
by the best of ten: 448 rows 405, 289 (the rule takes 268 for gate and up, where another algorithm takes 152); 224 rows
182, 170; 64 rows 128, 124. So each product is timed once, before the first graph of its row count is captured. What
was not timed, eager steps of any other row count, is left to the rule.

Few rows are timed one run at a time, with nothing in L2, as a step has them. Many rows run at the board's power limit,
where the clock falls with the power that an algorithm draws: they are timed on end. Of 8,192 rows on an H200 gate and
up take 2,780 µs so where the rule's take 2,845, and alone 2,854 and 2,767; down 1,399, 1,419, and 1,466 by the one that
is quickest alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

from thranite.layers.cublas_lt import CublasError, CublasLt, Product

CANDIDATES = 10
REPEATS = 3
GAIN = 0.98  # of the rule's time; closer ones are level, and the rule's is the same at every start
HOT_ROWS = 2048  # from so many on they are timed on end
HOT_GAIN = 0.99
HOT_MILLISECONDS = 20.0  # of one algorithm before it is timed, and while it is
HOPELESS = 1.2  # times the rule's single run: not timed on end
FLUSH_BYTES = 128 << 20  # more than any L2 holds: a step finds no weight there either
HALF_TYPES = (torch.bfloat16, torch.float16)

_tuning = False


@contextmanager
def tuning() -> Iterator[None]:
    """Within it, products that were not timed yet are."""
    global _tuning
    before, _tuning = _tuning, True
    try:
        yield
    finally:
        _tuning = before


def is_tuning() -> bool:
    """Whether this is within `tuning`."""
    return _tuning


def tuned_product(x: Tensor, weight: Tensor, onto: Tensor | None = None) -> Tensor | None:
    """x [T, K], weight [N, K] on a GPU → [T, N], or `onto` [T, N] with that added. None, and nothing done, where the
    rule's choice is as good, or was not compared."""
    if weight.dtype not in HALF_TYPES:
        return None
    return _products(weight.device).apply(x, weight, onto, _tuning)


class _Products:
    """The choices for one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._library: CublasLt | None = None
        self._chosen: dict[tuple[int, int, int, torch.dtype, bool], Product | None] = {}

    def apply(self, x: Tensor, weight: Tensor, onto: Tensor | None, tune: bool) -> Tensor | None:
        add = onto is not None
        key = (x.shape[0], *weight.shape, weight.dtype, add)
        if tune and key not in self._chosen:
            self._chosen[key] = self._choose(x, weight, add)
        product = self._chosen.get(key)
        if product is None or self._library is None or not x.is_contiguous():
            return None
        if onto is None:
            onto = x.new_empty(x.shape[0], weight.shape[0])
        elif not onto.is_contiguous():
            return None
        return self._library.run(product, x, weight, onto, add=add)

    def _choose(self, x: Tensor, weight: Tensor, add: bool) -> Product | None:
        rows, (n, k) = x.shape[0], weight.shape
        try:
            self._library = library = self._library or CublasLt(self._device)
            products = library.products(rows, n, k, weight.dtype, CANDIDATES)
        except (OSError, CublasError):
            return (
                None  # a torch built with another cuBLAS, or a shape that this one has nothing for: the rule has to do
            )
        onto = x.new_zeros(rows, n) if add else None  # nothing is added to the stream itself
        clock, gain = stopwatch(rows, self._device), HOT_GAIN if rows >= HOT_ROWS else GAIN
        best, least = None, gain * clock(partial(product_by_rule, x, weight, onto))
        # Else in the place of the rule's result: of a full step each may be half a gigabyte.
        out = x.new_empty(rows, n) if onto is None else onto
        for product in products:
            try:
                time = clock(partial(library.run, product, x, weight, out, add=add))
            except CublasError:
                continue
            if time < least:
                best, least = product, time
        return best


def product_by_rule(x: Tensor, weight: Tensor, onto: Tensor | None = None) -> Tensor:
    """As `tuned_product`, by whatever torch takes."""
    return F.linear(x, weight) if onto is None else onto.addmm_(x, weight.t())


def stopwatch(rows: int, device: torch.device) -> Callable[[Callable[[], object]], float]:
    """Milliseconds of a run with so many rows, as a step has them."""
    return HotClock(device) if rows >= HOT_ROWS else partial(milliseconds, device=device)


def milliseconds(run: Callable[[], object], device: torch.device) -> float:
    """The least of a few runs on the device, each of which finds nothing in its cache."""
    flushed = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    least = float("inf")
    for repeat in range(REPEATS + 1):  # the first one loads the kernel
        flushed.zero_()  # takes longer than launching what follows
        begin.record()
        run()
        end.record()
        end.synchronize()
        if repeat:
            least = min(least, begin.elapsed_time(end))
    return least


class HotClock:
    """Milliseconds of a run among many on end, once as many have run before. The first it times is the measure of what
    is hopeless: infinite."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._hopeless = float("inf")

    def __call__(self, run: Callable[[], object]) -> float:
        run()  # loads the kernel
        single = self._mean(run, 1)
        if single > self._hopeless:
            return float("inf")
        if self._hopeless == float("inf"):
            self._hopeless = HOPELESS * single
        count = max(ceil(HOT_MILLISECONDS / single), 1)
        self._mean(run, count)
        return self._mean(run, count)

    def _mean(self, run: Callable[[], object], count: int) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(count):
            run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / count


@cache
def _products(device: torch.device) -> _Products:
    """One a device: products of one stream never overlap."""
    return _Products(device)
