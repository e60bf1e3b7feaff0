"""HorizontalPodAutoscaler's three conditions, from one decision."""

from __future__ import annotations

from thranite_operator.autoscaling.decision import Decision
from thranite_operator.autoscaling.reasons import Reason
from thranite_operator.conditions import Condition

TYPES = ("AbleToScale", "ScalingActive", "ScalingLimited")
BLIND = (Reason.METRICS_UNAVAILABLE, Reason.NO_READY_PODS, Reason.SCALING_DISABLED)
LIMITS = (
    *(Reason.TOO_FEW_REPLICAS, Reason.TOO_MANY_REPLICAS, Reason.SCHEDULE, Reason.SCALE_UP_LIMIT),
    *(Reason.SCALE_DOWN_LIMIT, Reason.INSUFFICIENT_GPU, Reason.WAITING_FOR_PENDING),
)
FIRST = "the first look at the pods is yet to come"


def unknown() -> tuple[Condition, ...]:
    return tuple(Condition(kind, "Unknown", "Starting", FIRST) for kind in TYPES)


def of_decision(decision: Decision, failure: str | None, problem: str | None) -> tuple[Condition, ...]:
    """`failure`: why the wish could not be written. `problem`: of the spec, that no rule of the API server finds."""
    return _able(decision, failure, problem), _active(decision), _limited(decision)


def _able(decision: Decision, failure: str | None, problem: str | None) -> Condition:
    if failure is not None:
        return Condition("AbleToScale", "False", "FailedUpdateScale", failure)
    if problem is not None:
        return Condition("AbleToScale", "False", "InvalidSchedule", f"{problem}; it is left out")
    return Condition("AbleToScale", "True", "ReadyForNewScale", "replicas can be written")


def _active(decision: Decision) -> Condition:
    if decision.reason in BLIND:
        return Condition("ScalingActive", "False", decision.reason, decision.message)
    if decision.reason == Reason.METRIC_MISSING:
        return Condition("ScalingActive", "True", decision.reason, f"replicas are not lowered: {decision.message}")
    return Condition("ScalingActive", "True", "ValidMetricFound", "the pods report their load")


def _limited(decision: Decision) -> Condition:
    if decision.reason in LIMITS:
        return Condition("ScalingLimited", "True", decision.reason, decision.message)
    return Condition("ScalingLimited", "False", "DesiredWithinRange", "nothing keeps replicas from what the load asks")
