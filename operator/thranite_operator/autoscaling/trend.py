"""A steady rise of arrivals, as far ahead as a replica takes to start."""

from __future__ import annotations

import math
from collections.abc import Sequence

from thranite_operator.autoscaling.state import Arrival

LEVEL_SECONDS = 60.0  # arrivals of this last while, on average, are the present level
TREND_SECONDS = 600.0
MIN_POINTS = 8
ERRORS = 2.0  # standard errors that the slope must exceed: noise is no rise
MAX_GROWTH = 2.0  # of a forecast over the level


def level(arrivals: Sequence[Arrival], now: float) -> float | None:
    recent = [item.rate for item in arrivals if item.time > now - LEVEL_SECONDS]
    return sum(recent) / len(recent) if recent else None


def forecast(arrivals: Sequence[Arrival], now: float, ahead: float) -> float | None:
    """The level `ahead` seconds on if the least rise that the history supports goes on; never below the level."""
    present = level(arrivals, now)
    if present is None:
        return None
    rise = max(sure_slope([item for item in arrivals if item.time > now - TREND_SECONDS]), 0.0)
    return min(present + rise * ahead, present * MAX_GROWTH)


def sure_slope(points: Sequence[Arrival]) -> float:
    """Least-squares slope, `ERRORS` standard errors nearer to 0; 0 where the sign is not sure."""
    count = len(points)
    if count < MIN_POINTS:
        return 0.0
    middle = sum(point.time for point in points) / count
    mean = sum(point.rate for point in points) / count
    spread = sum((point.time - middle) ** 2 for point in points)
    if spread == 0:
        return 0.0
    slope = sum((point.time - middle) * (point.rate - mean) for point in points) / spread
    residual = sum((point.rate - mean - slope * (point.time - middle)) ** 2 for point in points)
    margin = ERRORS * math.sqrt(residual / (count - 2) / spread)
    return math.copysign(max(abs(slope) - margin, 0.0), slope)
