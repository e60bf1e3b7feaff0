"""spec.autoscaling as plain data. Defaults are those of the CRD; a test holds the two together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mode = Literal["Internal", "External", "Off"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingRules:
    """One direction. At most max(`pods`, `percent`) in any `period_seconds`; the most cautious recommendation of the
    last `stabilization_window_seconds` counts; a demand within `tolerance_percent` of what is there changes nothing."""

    stabilization_window_seconds: int
    tolerance_percent: int
    pods: int
    percent: int
    period_seconds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleUp(ScalingRules):
    stabilization_window_seconds: int = 0
    tolerance_percent: int = 10
    pods: int = 2
    percent: int = 100
    period_seconds: int = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleDown(ScalingRules):
    stabilization_window_seconds: int = 300
    tolerance_percent: int = 20
    pods: int = 1
    percent: int = 0
    period_seconds: int = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Behavior:
    scale_up: ScaleUp = ScaleUp()
    scale_down: ScaleDown = ScaleDown()


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """From each time that `start` (cron, five fields) names in `time_zone`, for `duration_seconds`, at least
    `min_replicas`."""

    name: str
    start: str
    duration_seconds: int
    min_replicas: int
    time_zone: str = "UTC"


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoscalingSpec:
    """`drain_target_seconds`: time in which a queue shall be worked off. `predictive`: scale ahead of a steady rise."""

    mode: Mode = "Internal"
    min_replicas: int = 1
    max_replicas: int = 1
    target_queue_depth: int = 4
    target_kv_cache_utilization_percent: int = 75
    interval_seconds: int = 15
    drain_target_seconds: int = 60
    predictive: bool = True
    behavior: Behavior = Behavior()
    schedules: tuple[Schedule, ...] = ()
