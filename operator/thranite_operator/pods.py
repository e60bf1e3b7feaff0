"""What the operator keeps of a pod: a projection, never the whole object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from thranite_operator import names
from thranite_operator.kinds import controller_uid


@dataclass(frozen=True, slots=True)
class Termination:
    reason: str
    exit_code: int
    message: str
    time: str  # RFC 3339


@dataclass(frozen=True, slots=True)
class Container:
    """`waiting`: reason and message while it waits. `ended`: its present end, or else its last one."""

    name: str
    ready: bool
    started: bool
    restarts: int
    waiting: tuple[str, str] | None = None
    running: bool = False
    ended: Termination | None = None
    over: bool = False  # whether `ended` is its present state


@dataclass(frozen=True, slots=True)
class Pod:
    """`containers`: init containers first. `owner`: uid of the ReplicaSet or Job that made it. `unscheduled`: the
    scheduler's words while there is no node. `end_due`: when the grace period of one that is being deleted ends."""

    name: str
    uid: str
    component: str
    template: str
    phase: str
    ready: bool
    created: str
    unscheduled: str | None = None
    scheduled_at: str | None = None
    ready_at: str | None = None
    end_due: str | None = None
    address: str | None = None
    reason: str = ""
    message: str = ""
    containers: tuple[Container, ...] = ()
    owner: str | None = None

    @property
    def deleting(self) -> bool:
        return self.end_due is not None

    @property
    def restarts(self) -> int:
        return sum(container.restarts for container in self.containers)

    @property
    def start_seconds(self) -> int | None:
        """From placement to readiness; None if it is not ready, or was restarted on the way."""
        if not (self.ready and self.scheduled_at and self.ready_at) or self.restarts:
            return None
        return round((parse_time(self.ready_at) - parse_time(self.scheduled_at)).total_seconds())


def parse_time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def project(obj: Mapping[str, Any]) -> Pod:
    meta, status = obj["metadata"], obj.get("status", {})
    labels = meta.get("labels", {})
    conditions = {item["type"]: item for item in status.get("conditions", ())}
    scheduled, ready = conditions.get("PodScheduled", {}), conditions.get("Ready", {})
    is_ready, is_scheduled = ready.get("status") == "True", scheduled.get("status") == "True"
    return Pod(
        name=meta["name"],
        uid=meta["uid"],
        component=labels.get(names.COMPONENT, ""),
        template=labels.get(names.TEMPLATE, ""),
        phase=status.get("phase", "Pending"),
        ready=is_ready,
        created=meta["creationTimestamp"],
        unscheduled=_unscheduled(scheduled),
        scheduled_at=scheduled.get("lastTransitionTime") if is_scheduled else None,
        ready_at=ready.get("lastTransitionTime") if is_ready else None,
        end_due=meta.get("deletionTimestamp"),
        address=status.get("podIP"),
        reason=status.get("reason", ""),
        message=status.get("message", ""),
        containers=_containers(status),
        owner=controller_uid(obj),
    )


def _unscheduled(condition: Mapping[str, Any]) -> str | None:
    if condition.get("status") != "False" or condition.get("reason") != "Unschedulable":
        return None
    return str(condition.get("message", ""))


def _containers(status: Mapping[str, Any]) -> tuple[Container, ...]:
    lists: Sequence[Sequence[Mapping[str, Any]]] = [
        status.get("initContainerStatuses") or (),
        status.get("containerStatuses") or (),
    ]
    return tuple(_container(item) for statuses in lists for item in statuses)


def _container(item: Mapping[str, Any]) -> Container:
    state, last = item.get("state", {}), item.get("lastState", {})
    waiting = state.get("waiting")
    ended = state.get("terminated") or last.get("terminated")
    return Container(
        name=item["name"],
        ready=bool(item.get("ready")),
        started=bool(item.get("started")),
        restarts=int(item.get("restartCount", 0)),
        waiting=(waiting.get("reason", ""), waiting.get("message", "")) if waiting else None,
        running="running" in state,
        ended=_termination(ended) if ended else None,
        over="terminated" in state,
    )


def _termination(item: Mapping[str, Any]) -> Termination:
    return Termination(
        reason=item.get("reason", ""),
        exit_code=int(item.get("exitCode", 0)),
        message=item.get("message", "").strip(),
        time=item.get("finishedAt") or "",
    )
