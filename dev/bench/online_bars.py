"""What llama-8b on one H200 has to reach online, and whether it did."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from thranite.bench.online_figures import OnlineFigures

BARS: dict[float, dict[str, tuple[float, float]]] = {  # rate → figure → (must, aim)
    4.0: {"ttft_p50": (20, 16), "ttft_p99": (45, 35), "tpot_p50": (4.7, 4.4)},
    16.0: {"ttft_p50": (25, 21), "ttft_p99": (58, 48), "tpot_p50": (5.8, 5.2), "itl_p99": (17, 13)},
    32.0: {"ttft_p50": (31, 26), "ttft_p99": (72, 60), "tpot_p50": (7.4, 6.7), "itl_p99": (24, 20)},
    math.inf: {"seconds": (9.4, 8.5)},
}


@dataclass(frozen=True, slots=True)
class Bar:
    """`values`: of the runs that count; the bar holds if their mean is at most `must`."""

    rate: float
    figure: str
    values: tuple[float, ...]
    must: float
    aim: float

    @property
    def holds(self) -> bool:
        return bool(self.values) and mean(self.values) <= self.must


def judge(runs: Sequence[OnlineFigures]) -> list[Bar]:
    """A bar for each figure of every rate that was measured. A run with a failed request does not count."""
    return [
        Bar(rate, figure, tuple(getattr(run, figure) for run in runs if run.rate == rate and not run.failed), *bounds)
        for rate, figures in BARS.items()
        if any(run.rate == rate for run in runs)
        for figure, bounds in figures.items()
    ]


def verdict_table(bars: Sequence[Bar]) -> str:
    lines = [("requests/s", "figure", "runs", "mean", "must", "aim", "")]
    for bar in bars:
        runs = ", ".join(f"{value:.2f}" for value in bar.values)
        middle = f"{mean(bar.values):.2f}" if bar.values else "none counts"
        reached = "aim" if bar.holds and mean(bar.values) <= bar.aim else "holds" if bar.holds else "MISSED"
        lines.append((f"{bar.rate:g}", bar.figure, runs, middle, f"{bar.must:g}", f"{bar.aim:g}", reached))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
