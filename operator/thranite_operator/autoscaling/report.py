"""What status.autoscaling says, and what an operator that starts anew learns from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from thranite_operator.autoscaling import conditions
from thranite_operator.autoscaling.decision import Decision
from thranite_operator.autoscaling.metric import MetricValue
from thranite_operator.autoscaling.state import AutoscalerState, Change, Recommendation
from thranite_operator.conditions import Condition

DECISIONS_KEPT = 5
MAX_MESSAGE = 1024


@dataclass(frozen=True, slots=True)
class Report:
    """Of the last decision that changed the wish or a condition: values that move all the time are metrics, as each
    write of a status is one for everyone who watches."""

    section: Mapping[str, Any]
    conditions: tuple[Condition, ...]


def restored(status: Mapping[str, Any]) -> Report:
    """What the operator before this one said, until there is a first decision."""
    known = {item["type"]: item for item in status.get("conditions", ())}
    found = [
        Condition(item.type, known[item.type]["status"], known[item.type]["reason"], known[item.type]["message"])
        if item.type in known
        else item
        for item in conditions.unknown()
    ]
    return Report(status.get("autoscaling", {}), tuple(found))


def restored_state(section: Mapping[str, Any], current: int, now: float) -> AutoscalerState:
    """A change of replicas that status does not know counts as made now: an operator that was killed between the two
    writes must not be followed by one that scales as if nothing had happened."""
    changes = tuple(
        Change(_seconds(item["time"]), item["to"] - item["from"]) for item in reversed(section.get("decisions", ()))
    )
    unknown = current - section.get("desired", current)
    rate = section.get("serviceRate")
    return AutoscalerState(
        recommendations=(Recommendation(now, current),),
        changes=(*changes, Change(now, unknown)) if unknown else changes,
        service_rate=float(rate) if rate is not None else None,
    )


def successor(
    before: Report, decision: Decision, current: int, found: Sequence[Condition], now: float, *, written: bool
) -> Report:
    """The former report, the very object, if the decision changes nothing of note. What could not be written is told by
    the conditions alone."""
    changes = written and decision.desired != current
    if not changes and _words(found) == _words(before.conditions):
        return before
    section = _section(before.section, decision, current, now) if written else before.section
    return Report(section, tuple(found))


def _words(found: Sequence[Condition]) -> list[tuple[str, str, str]]:
    return [(item.type, item.status, item.reason) for item in found]


def _section(before: Mapping[str, Any], decision: Decision, current: int, now: float) -> Mapping[str, Any]:
    stamp, message = _stamp(now), decision.message[:MAX_MESSAGE]
    decisions = list(before.get("decisions", ()))
    last = before.get("lastScaleTime")
    if decision.desired != current:
        entry = {"time": stamp, "from": current, "to": decision.desired, "reason": str(decision.reason)}
        decisions = [{**entry, "message": message}, *decisions][:DECISIONS_KEPT]
        last = stamp
    rate = decision.state.service_rate
    section = {
        "current": current,
        "desired": decision.desired,
        "recommended": decision.recommended,
        "reason": str(decision.reason),
        "message": message,
        "lastScaleTime": last,
        "serviceRate": f"{rate:.4g}" if rate is not None else None,
        "metrics": [_metric(metric) for metric in decision.metrics],
        "decisions": decisions,
    }
    return {key: value for key, value in section.items() if value is not None}


def _metric(metric: MetricValue) -> Mapping[str, Any]:
    row = {
        "name": str(metric.reason),
        "average": f"{metric.average:.3g}" if metric.average is not None else None,
        "target": f"{metric.target:.3g}",
        "replicas": metric.ask,
        "reporting": metric.reporting,
        "missing": metric.missing,
    }
    return {key: value for key, value in row.items() if value is not None}


def _stamp(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()
