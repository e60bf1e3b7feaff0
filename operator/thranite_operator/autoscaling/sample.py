"""What a decision sees of one pod."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# Pending: not ready, whatever the cause. Unschedulable: pending for want of a node. Draining: it ends, and its streams
# with it. Pods that have failed are not samples.
Phase = Literal["Ready", "Pending", "Unschedulable", "Draining"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Requests per second over the `seconds` since the scrape before. `received` holds `rejected` (for a full queue),
    and neither holds invalid requests; `finished` are those that came to their end, not those given up."""

    received: float
    finished: float
    rejected: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One scrape. `rates` is None at a pod's first one, and where one of its models ended. `kv_cache_usage`: 0 to 1."""

    waiting: float
    running: float
    kv_cache_usage: float
    rates: Rates | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSample:
    """`load` is None where the last scrape failed or is stale; only that of Ready pods counts."""

    uid: str
    phase: Phase
    load: Load | None = None
