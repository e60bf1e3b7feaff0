"""The traces: seven kinds, two of each to tune by and two held out. Figures were set once, before any run."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from itertools import pairwise

from autoscaling.traces import HOUR, PLENTY, Half, Outage, Trace

UNIT = 1.1  # requests per second that a full replica of the recorded service finishes; a test holds it to that
Rate = Callable[[float], float]


def steps(levels: Sequence[tuple[float, float]]) -> Rate:
    """(from when on, level)."""

    def rate(now: float) -> float:
        return next(level for start, level in reversed(levels) if now >= start)

    return rate


def ramps(points: Sequence[tuple[float, float]]) -> Rate:
    """Straight lines between (time, level), level before the first and after the last."""

    def rate(now: float) -> float:
        for (t0, y0), (t1, y1) in pairwise(points):
            if t0 <= now < t1:
                return y0 + (y1 - y0) * (now - t0) / (t1 - t0)
        return points[0][1] if now < points[0][0] else points[-1][1]

    return rate


def bursts(base: float, height: float, length: float, starts: Sequence[float]) -> Rate:
    def rate(now: float) -> float:
        return height if any(start <= now < start + length for start in starts) else base

    return rate


def noise(name: str, level: float, spread: float, period: float) -> Rate:
    """Log-normal around `level`, anew every `period` seconds."""
    draw = random.Random(f"{name}/level")
    levels = [level * draw.lognormvariate(-(spread**2) / 2, spread) for _ in range(int(2 * HOUR / period) + 1)]

    def rate(now: float) -> float:
        return levels[int(now / period)]

    return rate


def diurnal(low: float, high: float, period: float, phase: float) -> Rate:
    def rate(now: float) -> float:
        return (low + high) / 2 - (high - low) / 2 * math.cos(2 * math.pi * (now + phase) / period)

    return rate


def trace(
    kind: str, number: int, half: Half, rate: Rate, *, hours: float = 1.0, outages: tuple[Outage, ...] = (),
    gpus: int = PLENTY,
) -> Trace:  # fmt: skip
    """Begins with the replicas that its first rate needs at 70 % of what they can do."""
    seconds = hours * HOUR
    peak = max(rate(second) for second in range(int(seconds)))
    return Trace(
        name=f"{kind}-{half}-{number}",
        kind=kind,
        half=half,
        seconds=seconds,
        rate=lambda now: UNIT * rate(now),
        peak=UNIT * peak,
        replicas=max(math.ceil(rate(0.0) / 0.7), 1),
        outages=outages,
        gpus=gpus,
    )


TUNE: tuple[Trace, ...] = (
    trace("step", 1, "tune", steps([(0, 0.7), (900, 3.5), (2700, 0.7)])),
    trace("step", 2, "tune", steps([(0, 1.4), (600, 2.8), (1500, 5.6), (2700, 2.0)])),
    trace("ramp", 1, "tune", ramps([(600, 0.7), (1800, 5.0), (2400, 5.0), (3300, 1.0)])),
    trace("ramp", 2, "tune", ramps([(300, 1.0), (2700, 4.0), (3300, 1.5)])),
    trace("burst", 1, "tune", bursts(1.4, 4.2, 120, [700, 1500, 2300, 3000])),
    trace("burst", 2, "tune", bursts(2.0, 5.0, 60, [500, 1300, 1700, 2600, 3200])),
    trace("noise", 1, "tune", noise("tune-1", 2.5, 0.3, 30)),
    trace("noise", 2, "tune", noise("tune-2", 4.0, 0.2, 60)),
    trace("diurnal", 1, "tune", diurnal(0.7, 5.0, 3600, 0), hours=2.0),
    trace("diurnal", 2, "tune", diurnal(1.5, 4.0, 5400, 1200), hours=2.0),
    trace("loss", 1, "tune", ramps([(600, 3.0), (1500, 4.0)]), outages=(Outage(1200, 1800, 1.0),)),
    trace("loss", 2, "tune", steps([(0, 3.5), (1800, 4.5)]), outages=(Outage(900, 2700, 0.5),)),
    trace("gpus", 1, "tune", steps([(0, 1.4), (900, 4.4), (1700, 1.4)]), gpus=4),
    trace("gpus", 2, "tune", ramps([(600, 1.0), (1800, 4.5), (3000, 1.0)]), gpus=4),
)

HELD_OUT: tuple[Trace, ...] = (
    trace("step", 1, "held-out", steps([(0, 1.0), (1100, 4.2), (2500, 1.3)])),
    trace("step", 2, "held-out", steps([(0, 0.6), (500, 1.8), (1400, 3.6), (2200, 6.0), (3000, 2.5)])),
    trace("ramp", 1, "held-out", ramps([(500, 1.2), (1400, 5.5), (2200, 5.5), (3000, 0.8)])),
    trace("ramp", 2, "held-out", ramps([(400, 0.5), (2000, 3.2), (2600, 3.2), (3400, 1.2)])),
    trace("burst", 1, "held-out", bursts(1.0, 3.4, 90, [600, 1200, 2000, 2900])),
    trace("burst", 2, "held-out", bursts(2.6, 6.0, 150, [800, 1900, 2800])),
    trace("noise", 1, "held-out", noise("held-out-1", 1.8, 0.35, 45)),
    trace("noise", 2, "held-out", noise("held-out-2", 4.5, 0.25, 30)),
    trace("diurnal", 1, "held-out", diurnal(0.5, 4.2, 4500, 600), hours=2.0),
    trace("diurnal", 2, "held-out", diurnal(1.2, 5.5, 7200, 0), hours=2.0),
    trace("loss", 1, "held-out", ramps([(500, 2.4), (1700, 3.6)]), outages=(Outage(1000, 1700, 1.0),)),
    trace("loss", 2, "held-out", diurnal(2.0, 4.5, 3600, 900), outages=(Outage(600, 2400, 0.4),)),
    trace("gpus", 1, "held-out", steps([(0, 1.0), (800, 5.2), (1700, 1.0)]), gpus=5),
    trace("gpus", 2, "held-out", ramps([(500, 1.2), (1500, 3.4), (2900, 1.2)]), gpus=3),
)

ALL = (*TUNE, *HELD_OUT)
