"""How many replicas shall there be. Pure: no I/O, no clock, no randomness.

HorizontalPodAutoscaler's calculation, with what it lacks for queues: a service-rate gate, rejected requests as demand,
a hold while own pods find no node. More queue never asks for fewer; missing metrics never take a replica away; a pod
that is not ready never raises the ask; only limits of the spec act without metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from thranite_operator.autoscaling import demand, schedules, service_rate, trend, windows
from thranite_operator.autoscaling.metric import MetricValue
from thranite_operator.autoscaling.reasons import Reason
from thranite_operator.autoscaling.sample import PodSample
from thranite_operator.autoscaling.spec import AutoscalingSpec
from thranite_operator.autoscaling.state import Arrival, AutoscalerState, Change, Recommendation
from thranite_operator.autoscaling.survey import Survey, survey

RUSH_RATIO = 2.0  # of queue over target
RUSH_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """`desired`: the replicas to wish for. `recommended`: what the metrics ask for, before limits. `reason`: what made
    `desired` what it is. `state`: for the next decision, once this one is carried out."""

    desired: int
    recommended: int
    reason: Reason
    message: str
    metrics: tuple[MetricValue, ...]
    state: AutoscalerState


@dataclass(frozen=True, slots=True)
class Step:
    """A size on its way to the decision, and what gave it."""

    replicas: int
    reason: Reason
    words: str


@dataclass(frozen=True, slots=True)
class Case:
    """All that one decision is made from. `state` knows the arrivals and the rush of now."""

    spec: AutoscalingSpec
    state: AutoscalerState
    seen: Survey
    current: int
    now: float


def decide(
    spec: AutoscalingSpec, state: AutoscalerState, pods: tuple[PodSample, ...], current: int, now: float
) -> Decision:
    if current == 0:
        return _disabled(state)
    seen = survey(pods)
    case = Case(spec, _look(spec, state, seen, current, now), seen, current, now)
    metrics = demand.metrics(spec, case.state, seen, current, now)
    asked = _recommendation(case, metrics)
    step = _clamp(case, _toward(case, asked))
    return Decision(
        desired=step.replicas,
        recommended=asked.replicas,
        reason=step.reason,
        message=f"{current} → {step.replicas}: {step.words}" if step.replicas != current else step.words,
        metrics=metrics,
        state=_successor(case, pods, asked, step),
    )


def _disabled(state: AutoscalerState) -> Decision:
    return Decision(
        desired=0,
        recommended=0,
        reason=Reason.SCALING_DISABLED,
        message="spec.replicas is 0, which stops serving: set it to 1 or more to have it scaled",
        metrics=(),
        state=replace(state, recommendations=(), arrivals=(), saturated=frozenset()),
    )


def _look(spec: AutoscalingSpec, state: AutoscalerState, seen: Survey, current: int, now: float) -> AutoscalerState:
    """The service rate stays that of the decisions before: learned from this very queue it could lower the ask. Where
    the clock was set back, arrivals of then are unknown, and what holds for a while does so from now on."""
    arrivals = tuple(item for item in state.arrivals if now - trend.TREND_SECONDS < item.time <= now)
    recommendations = tuple(replace(item, time=min(item.time, now)) for item in state.recommendations)
    if seen.arrival_rate is not None:
        arrivals += (Arrival(now, seen.arrival_rate),)
    rush = seen.reporting > 0 and seen.backlog >= RUSH_RATIO * spec.target_queue_depth * current
    return replace(
        state,
        arrivals=arrivals,
        recommendations=recommendations or (Recommendation(now, current),),
        changes=tuple(replace(item, time=min(item.time, now)) for item in state.changes),
        rush_until=now + RUSH_SECONDS if rush else min(state.rush_until, now + RUSH_SECONDS),
    )


def _recommendation(case: Case, metrics: Sequence[MetricValue]) -> Step:
    """The maximum over the metrics; fewer than there are only where every ready pod reports."""
    seen, current = case.seen, case.current
    ready = seen.missing + seen.reporting
    known = [(metric.ask, metric) for metric in metrics if metric.ask is not None]
    if not known:
        if not ready:
            return Step(current, Reason.NO_READY_PODS, "no pod is ready")
        return Step(current, Reason.METRICS_UNAVAILABLE, f"none of {ready} ready pods reports")
    asked, metric = max(known, key=lambda item: item[0])
    if asked < current and seen.missing:
        return Step(current, Reason.METRIC_MISSING, f"{seen.missing} of {ready} ready pods do not report")
    unknown = next((item for item in metrics if item.ask is None), None)
    if asked < current and unknown is not None:
        return Step(current, Reason.METRIC_MISSING, f"{unknown.unit}: not known yet")
    if asked == current and seen.unschedulable:
        return Step(current, Reason.INSUFFICIENT_GPU, f"{metric.words}, and {_homeless(seen)}")
    if asked == current:
        held = next((item for item in metrics if item.held is not None), None)
        if held is not None and held.held is not None:
            return Step(current, held.held, f"{held.words}, {_HELD[held.held]}")
        return Step(current, Reason.STEADY, metric.words)
    return Step(asked, metric.reason, metric.words)


_HELD = {
    Reason.WAITING_FOR_PENDING: "and pods that start must be there before more are asked for",
    Reason.SERVICE_RATE: "which the replicas work off in time",
}


def _homeless(seen: Survey) -> str:
    return f"{seen.unschedulable} of its pods {'finds' if seen.unschedulable == 1 else 'find'} no node"


def _toward(case: Case, asked: Step) -> Step:
    """As far as windows, paces and holds let it."""
    if asked.replicas > case.current:
        return _up(case, asked)
    return _down(case, asked) if asked.replicas < case.current else asked


def _up(case: Case, asked: Step) -> Step:
    current, rules = case.current, case.spec.behavior.scale_up
    if case.seen.unschedulable:
        words = f"{asked.words} asks for {asked.replicas}, and {_homeless(case.seen)}"
        return Step(current, Reason.INSUFFICIENT_GPU, words)
    wanted = asked.replicas
    if case.now >= case.state.rush_until:
        wanted = max(windows.least(case.state.recommendations, rules, case.now, wanted), current)
    if wanted == current:
        return Step(current, Reason.STABILIZED, f"{asked.words}, for less than {rules.stabilization_window_seconds} s")
    limit = max(windows.ceiling(case.state.changes, rules, case.now, current), current)
    if wanted > limit:
        return Step(limit, Reason.SCALE_UP_LIMIT, f"{asked.words} asks for {wanted}, more than behavior.scaleUp allows")
    return replace(asked, replicas=wanted)


def _down(case: Case, asked: Step) -> Step:
    current, rules = case.current, case.spec.behavior.scale_down
    if case.now < case.state.rush_until:
        return Step(current, Reason.RUSH, f"{asked.words}, less than {RUSH_SECONDS:.0f} s after a rush")
    if case.seen.draining:
        return Step(current, Reason.DRAINING, f"{asked.words}, and {case.seen.draining} pods are still draining")
    wanted = windows.most(case.state.recommendations, rules, case.now, asked.replicas)
    if wanted >= current:
        return Step(current, Reason.STABILIZED, f"{asked.words}, for less than {rules.stabilization_window_seconds} s")
    limit = windows.floor(case.state.changes, rules, case.now, current)
    if wanted < limit:
        held = min(limit, current)
        return Step(
            held, Reason.SCALE_DOWN_LIMIT, f"{asked.words} leaves {wanted}, fewer than behavior.scaleDown allows"
        )
    return replace(asked, replicas=wanted)


def _clamp(case: Case, step: Step) -> Step:
    """Limits of the spec act at once, whatever else holds."""
    spec = case.spec
    window = schedules.active(spec.schedules, case.now, case.state.start_seconds or 0.0)
    least = max(spec.min_replicas, window.min_replicas if window else 0)
    if step.replicas > spec.max_replicas:
        return Step(spec.max_replicas, Reason.TOO_MANY_REPLICAS, f"{step.words}; maxReplicas is {spec.max_replicas}")
    if step.replicas >= least:
        return step
    if window is not None and window.min_replicas > spec.min_replicas:
        least = min(least, spec.max_replicas)
        return Step(least, Reason.SCHEDULE, f"schedule {window.name} wants at least {window.min_replicas}")
    return Step(least, Reason.TOO_FEW_REPLICAS, f"{step.words}; minReplicas is {least}")


def _successor(case: Case, pods: Sequence[PodSample], asked: Step, step: Step) -> AutoscalerState:
    state, behavior, now = case.state, case.spec.behavior, case.now
    memory = max(behavior.scale_up.stabilization_window_seconds, behavior.scale_down.stabilization_window_seconds)
    period = max(behavior.scale_up.period_seconds, behavior.scale_down.period_seconds)
    delta = step.replicas - case.current
    changes = (*state.changes, Change(now, delta)) if delta else state.changes
    recommendations = (*state.recommendations, Recommendation(now, asked.replicas))
    return replace(
        state,
        recommendations=tuple(item for item in recommendations if item.time > now - memory),
        changes=tuple(item for item in changes if item.time > now - period),
        saturated=service_rate.with_queue(pods),
        service_rate=service_rate.learn(state.service_rate, pods, state.saturated),
    )
