"""One metric of one decision: what the pods report, and the replicas it asks for.

The calculation is HorizontalPodAutoscaler's. All its ratios of averages come down to sums: a pod that is not there yet
adds nothing, so the ask does not grow while pods start. Pods whose metrics are missing count as idle when the question
is whether to add replicas, and as exactly on target when it is whether to take some away.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from thranite_operator.autoscaling.reasons import Reason
from thranite_operator.autoscaling.spec import Behavior


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricValue:
    """`average`: per present replica; with `ask` None where nothing reports. `held`: what keeps `ask` at fewer replicas
    than the plain ratio would have."""

    reason: Reason
    unit: str
    average: float | None
    target: float
    ask: int | None
    reporting: int
    missing: int
    held: Reason | None = None

    @property
    def words(self) -> str:
        average = self.average or 0.0
        side = "over" if average > self.target else "under" if average < self.target else "at"
        return f"{self.unit} {average:.3g} per replica {side} {self.target:.3g}"


def ask(total: float, target: float, missing: int, current: int, behavior: Behavior) -> int:
    """`total`: the sum over reporting pods; `target`: of one replica."""
    present = current * target
    if total > present * (100 + behavior.scale_up.tolerance_percent) / 100:
        return math.ceil(total / target)
    assumed = total + missing * target
    if assumed < present * (100 - behavior.scale_down.tolerance_percent) / 100:
        return min(max(math.ceil(assumed / target), 1), current)
    return current
