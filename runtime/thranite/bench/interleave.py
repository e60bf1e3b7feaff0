"""Measuring several contestants fairly: in turns, so that whatever else the machine does meets all of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Contestant = Callable[[int], float]  # repeat number → its figure


@dataclass(frozen=True, slots=True)
class Bar:
    """A ratio of two figures, and the bound it is held to."""

    name: str
    ratio: float
    bound: float
    at_least: bool  # else at most

    @property
    def met(self) -> bool:
        return self.ratio >= self.bound if self.at_least else self.ratio <= self.bound


def interleave(contestants: Mapping[str, Contestant], repeats: int) -> dict[str, list[float]]:
    """Figures of each contestant, one a repeat; who goes first changes with the repeat."""
    names = list(contestants)
    figures: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            figures[name].append(contestants[name](repeat))
    return figures


def medians(figures: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in figures.items()}
