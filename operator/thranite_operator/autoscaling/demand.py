"""What each metric asks for: the queue, the KV cache, and, once the service rate is learned, the arrivals."""

from __future__ import annotations

from thranite_operator.autoscaling import service_rate, trend
from thranite_operator.autoscaling.metric import MetricValue, ask
from thranite_operator.autoscaling.reasons import Reason
from thranite_operator.autoscaling.spec import AutoscalingSpec
from thranite_operator.autoscaling.state import AutoscalerState
from thranite_operator.autoscaling.survey import Survey


def metrics(
    spec: AutoscalingSpec, state: AutoscalerState, seen: Survey, current: int, now: float
) -> tuple[MetricValue, ...]:
    """`state` knows the arrivals of now."""
    ahead = state.start_seconds or 0.0 if spec.predictive else 0.0
    arrivals = trend.forecast(state.arrivals, now, ahead)
    found = (
        _queue(spec, state, seen, current, arrivals),
        _kv_cache(spec, seen, current),
        _request_rate(spec, state, seen, current, arrivals),
    )
    return tuple(metric for metric in found if metric is not None)


def _queue(
    spec: AutoscalingSpec, state: AutoscalerState, seen: Survey, current: int, arrivals: float | None
) -> MetricValue:
    plain = ask(seen.backlog, spec.target_queue_depth, seen.missing, current, spec.behavior)
    gated, held = _gate(spec, state, seen, current, arrivals, plain)
    return MetricValue(
        reason=Reason.QUEUE_DEPTH,
        unit="queue",
        average=seen.backlog / current if seen.reporting else None,
        target=float(spec.target_queue_depth),
        ask=gated if seen.reporting else None,
        reporting=seen.reporting,
        missing=seen.missing,
        held=held if seen.reporting else None,
    )


def _gate(
    spec: AutoscalingSpec, state: AutoscalerState, seen: Survey, current: int, arrivals: float | None, plain: int
) -> tuple[int, Reason | None]:
    """The queue's ask, as far as the service rate supports it. While that is unknown, pods that are on their way must
    be there before more are asked for."""
    if plain <= current:
        return plain, None
    if state.service_rate is not None and arrivals is not None:
        enough = service_rate.replicas_for(arrivals, seen.backlog, spec.drain_target_seconds, state.service_rate)
        return (plain, None) if enough >= plain else (max(enough, current), Reason.SERVICE_RATE)
    return (current, Reason.WAITING_FOR_PENDING) if seen.pending else (plain, None)


def _kv_cache(spec: AutoscalingSpec, seen: Survey, current: int) -> MetricValue:
    target = spec.target_kv_cache_utilization_percent / 100
    return MetricValue(
        reason=Reason.KV_CACHE_UTILIZATION,
        unit="KV cache use",
        average=seen.kv_cache_usage / current if seen.reporting else None,
        target=target,
        ask=ask(seen.kv_cache_usage, target, seen.missing, current, spec.behavior) if seen.reporting else None,
        reporting=seen.reporting,
        missing=seen.missing,
    )


def _request_rate(
    spec: AutoscalingSpec, state: AutoscalerState, seen: Survey, current: int, arrivals: float | None
) -> MetricValue | None:
    """None until a replica was seen at its limit. It keeps replicas that a short queue alone would give away, and adds
    some before there is a queue."""
    if state.service_rate is None:
        return None
    target = service_rate.UTILIZATION * state.service_rate
    known = seen.reporting > 0 and arrivals is not None
    return MetricValue(
        reason=Reason.REQUEST_RATE,
        unit="requests per second",
        average=arrivals / current if known and arrivals is not None else None,
        target=target,
        ask=ask(arrivals, target, seen.missing, current, spec.behavior) if known and arrivals is not None else None,
        reporting=seen.reporting,
        missing=seen.missing,
    )
