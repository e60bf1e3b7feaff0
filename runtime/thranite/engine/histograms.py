"""Distributions of one engine: what is measured, in which buckets, and the counts themselves.

The engine observes; snapshots travel with `EngineStats` as plain counts, without the bounds, which both sides know by
the histogram's name.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

# Bounds hold every one of vLLM's, so that its dashboards' quantiles are as fine, and more below 10 ms.
_FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
                80.0, 160.0, 640.0, 2560.0)  # fmt: skip
_TOKEN = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0,
          7.5, 10.0, 20.0, 40.0, 80.0)  # fmt: skip
_REQUEST = (0.01, 0.03, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0,
            240.0, 480.0, 960.0, 1920.0, 7680.0)  # fmt: skip
_LENGTH = tuple(float(digit * 10**power) for power in range(6) for digit in (1, 2, 5))
_STEP = tuple(float(2**power) for power in (0, *range(3, 15)))

BOUNDS: Mapping[str, tuple[float, ...]] = {
    "first_token_seconds": _FIRST_TOKEN,  # arrival → first token, once a request
    "inter_token_seconds": _TOKEN,  # between two of a sequence's tokens, as the host learns of them
    "request_seconds": _REQUEST,  # arrival → end
    "queue_seconds": _REQUEST,  # arrival → first scheduled
    "prefill_seconds": _REQUEST,  # first scheduled → first token
    "decode_seconds": _REQUEST,  # first token → last
    "inference_seconds": _REQUEST,  # first scheduled → last token
    "request_token_seconds": _TOKEN,  # decode time ÷ tokens after the first, once a request
    "prompt_tokens": _LENGTH,
    "generation_tokens": _LENGTH,  # of all samples of a request
    "longest_generation_tokens": _LENGTH,  # of the longest sample of a request
    "params_max_tokens": _LENGTH,
    "params_n": (1.0, 2.0, 5.0, 10.0, 20.0),
    "step_tokens": _STEP,  # prompt tokens and sampled ones that one step computes
}


@dataclass(frozen=True, slots=True)
class HistogramCounts:
    """`counts[i]`: observations at or below bound i and above the one before; the last entry, those above all."""

    counts: tuple[int, ...]
    total: float = 0.0  # sum of the observed values

    @property
    def observations(self) -> int:
        return sum(self.counts)


class Histogram:
    """Not thread-safe: the step loop's."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += times
        self._total += value * times

    def snapshot(self) -> HistogramCounts:
        return HistogramCounts(tuple(self._counts), self._total)


def empty_histograms() -> dict[str, HistogramCounts]:
    return {name: HistogramCounts((0,) * (len(bounds) + 1)) for name, bounds in BOUNDS.items()}
