"""Events on the transitions of conditions, the same one counted up instead of repeated."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from thranite_operator import names
from thranite_operator.kinds import EVENT
from thranite_operator.kube import KubeClient, Refused
from thranite_operator.spec import InferenceService

MAX_MESSAGE = 1024
REPEAT_WINDOW = timedelta(minutes=10)
MAX_REMEMBERED = 4096
WARNINGS = (
    *("ProgressDeadlineExceeded", "InvalidTemplate", "Forbidden", "NameTaken", "ReconcileFailed", "FailedCreate"),
    *("MetricsUnavailable", "MetricMissing", "InsufficientGPU", "FailedUpdateScale", "InvalidSchedule"),
)
QUIET = {
    ("AbleToScale", "ReadyForNewScale"),
    ("AbleToScale", "Starting"),
    ("ScalingActive", "Starting"),
    ("ScalingActive", "NoReadyPods"),
    ("ScalingActive", "ValidMetricFound"),
    ("ScalingLimited", "Starting"),
    *(("ScalingLimited", reason) for reason in ("DesiredWithinRange", "TooFewReplicas", "WaitingForPending")),
    *(("ScalingLimited", reason) for reason in ("ScaleUpLimit", "ScaleDownLimit", "Schedule")),
    ("ModelCached", "NotRequired"),
    ("Ready", "Starting"),
    ("Available", "NoReplicaReady"),
    ("Degraded", "AsExpected"),
}


@dataclass(frozen=True, slots=True)
class Transition:
    type: Literal["Normal", "Warning"]
    reason: str
    message: str


def transitions(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Transition]:
    """One for each reason that is new: conditions that share it tell it once, as loud as the loudest of them."""
    former = {item["type"]: (item["status"], item["reason"]) for item in before.get("conditions", ())}
    fresh: dict[str, list[Mapping[str, Any]]] = {}
    for item in after.get("conditions", ()):
        kind, reason = item["type"], item["reason"]
        if former.get(kind) != (item["status"], reason) and (kind, reason) not in QUIET:
            fresh.setdefault(reason, []).append(item)
    for reason, items in fresh.items():
        loud = any(map(_is_warning, items))
        message = f"{items[0]['type']}: {items[0]['message']}"[:MAX_MESSAGE]
        yield Transition("Warning" if loud else "Normal", reason, message)


def _is_warning(item: Mapping[str, Any]) -> bool:
    """Ready=False alone is no news of a failure: every start begins so."""
    if item["type"] == "Degraded":
        return bool(item["status"] == "True")
    if item["type"] == "ModelCached":
        return item["status"] == "False" and item["reason"] not in ("Loading", "Unschedulable")
    return item["reason"] in WARNINGS


@dataclass(slots=True)
class _Posted:
    name: str
    count: int
    last: datetime


class EventPoster:
    """Remembers what it posted, so that an event that returns within minutes is counted on the first one."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self._posted: dict[tuple[str, str, str], _Posted] = {}

    async def post(self, service: InferenceService, event: Transition, now: datetime) -> None:
        key = (service.uid, event.reason, event.message)
        known = self._posted.get(key)
        if known is not None and now - known.last < REPEAT_WINDOW and await self._count_up(service, known, now):
            return
        name = f"{service.name}.{uuid.uuid4().hex[:16]}"
        await self._client.create(_event(service, event, name, now))
        if len(self._posted) >= MAX_REMEMBERED:
            self._posted.pop(next(iter(self._posted)))
        self._posted[key] = _Posted(name, 1, now)

    async def _count_up(self, service: InferenceService, known: _Posted, now: datetime) -> bool:
        """False if the event has expired meanwhile."""
        patch = {"count": known.count + 1, "lastTimestamp": _stamp(now)}
        try:
            await self._client.merge(EVENT, service.namespace, known.name, patch)
        except Refused as refusal:
            if refusal.code == 404:
                return False
            raise
        known.count, known.last = known.count + 1, now
        return True


def _event(service: InferenceService, event: Transition, name: str, now: datetime) -> dict[str, Any]:
    involved = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "name": service.name,
        "namespace": service.namespace,
        "uid": service.uid,
    }
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": service.namespace},
        "involvedObject": involved,
        "type": event.type,
        "reason": event.reason,
        "message": event.message,
        "count": 1,
        "firstTimestamp": _stamp(now),
        "lastTimestamp": _stamp(now),
        "reportingComponent": names.FIELD_MANAGER,
        "source": {"component": names.FIELD_MANAGER},
    }


def _stamp(now: datetime) -> str:
    return now.strftime("%Y-%m-%dT%H:%M:%SZ")
