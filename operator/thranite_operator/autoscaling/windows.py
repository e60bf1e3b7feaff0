"""How fast the wish may follow the recommendation: HPA's stabilisation windows and rate policies."""

from __future__ import annotations

import math
from collections.abc import Sequence

from thranite_operator.autoscaling.spec import ScalingRules
from thranite_operator.autoscaling.state import Change, Recommendation


def least(recommendations: Sequence[Recommendation], rules: ScalingRules, now: float, recommended: int) -> int:
    """Of the window: what scaling up may reach."""
    return min([recommended, *_within(recommendations, rules, now)])


def most(recommendations: Sequence[Recommendation], rules: ScalingRules, now: float, recommended: int) -> int:
    """Of the window: what scaling down must leave."""
    return max([recommended, *_within(recommendations, rules, now)])


def ceiling(changes: Sequence[Change], rules: ScalingRules, now: float, current: int) -> int:
    """The most replicas that scaling up may reach now."""
    before = current - sum(change.delta for change in _recent(changes, rules, now) if change.delta > 0)
    return max(before + rules.pods, math.ceil(before * (100 + rules.percent) / 100))


def floor(changes: Sequence[Change], rules: ScalingRules, now: float, current: int) -> int:
    """The fewest replicas that scaling down may leave now."""
    before = current - sum(change.delta for change in _recent(changes, rules, now) if change.delta < 0)
    return min(before - rules.pods, math.floor(before * (100 - rules.percent) / 100))


def _within(recommendations: Sequence[Recommendation], rules: ScalingRules, now: float) -> list[int]:
    oldest = now - rules.stabilization_window_seconds
    return [item.replicas for item in recommendations if item.time > oldest]


def _recent(changes: Sequence[Change], rules: ScalingRules, now: float) -> list[Change]:
    return [change for change in changes if change.time > now - rules.period_seconds]
