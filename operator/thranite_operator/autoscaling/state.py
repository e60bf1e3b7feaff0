"""What one decision hands to the next."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Recommendation:
    time: float
    replicas: int


@dataclass(frozen=True, slots=True)
class Change:
    """Of the wish, at `time`, by `delta` replicas."""

    time: float
    delta: int


@dataclass(frozen=True, slots=True)
class Arrival:
    """Requests per second of all pods together."""

    time: float
    rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoscalerState:
    """Whole at birth: a decision on an empty state takes the present size for its own last recommendation, so an
    operator that starts anew waits a full window before it scales down. What a restart knows (from status.autoscaling)
    is `changes`, `service_rate` and `start_seconds`; the rest is learned again.

    `service_rate`: requests per second that a saturated replica finishes. `saturated`: uids of pods with a queue at the
    last decision. `start_seconds`: from a pod's placement to its readiness. Times are seconds since the epoch."""

    recommendations: tuple[Recommendation, ...] = ()
    changes: tuple[Change, ...] = ()
    arrivals: tuple[Arrival, ...] = ()
    saturated: frozenset[str] = frozenset()
    rush_until: float = 0.0
    service_rate: float | None = None
    start_seconds: float | None = None
