"""Conditions, decided from plain data. Every reason that can appear is a constant here or a cause of a pod's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from thranite_operator.causes import Cause, worst
from thranite_operator.model_state import ModelState

Truth = Literal["True", "False", "Unknown"]

SERVING = "Serving"
STARTING = "Starting"
SCALED_TO_ZERO = "ScaledToZero"
NO_REPLICA_READY = "NoReplicaReady"
ROLLOUT_IN_PROGRESS = "RolloutInProgress"
ROLLOUT_COMPLETE = "RolloutComplete"
WAITING_FOR_GPU = "WaitingForGPU"
WAITING_FOR_ROOM = "WaitingForRoom"
WAITING_FOR_MODEL = "WaitingForModel"
DEADLINE_EXCEEDED = "ProgressDeadlineExceeded"
FAILED_CREATE = "FailedCreate"
AS_EXPECTED = "AsExpected"
INVALID_TEMPLATE = "InvalidTemplate"
FORBIDDEN = "Forbidden"
NAME_TAKEN = "NameTaken"
NO_POD_MONITOR = "PodMonitorUnavailable"
RECONCILE_FAILED = "ReconcileFailed"


@dataclass(frozen=True, slots=True)
class Condition:
    type: str
    status: Truth
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that keeps the spec from being realised, whatever pods do. `advisory`: it does not; it is only told."""

    reason: str
    message: str
    advisory: bool = False


@dataclass(frozen=True, slots=True)
class Replicas:
    """Counts of pods that do not end. `current`: of the template that the spec asks for."""

    desired: int
    total: int = 0
    ready: int = 0
    current: int = 0
    current_ready: int = 0
    unschedulable: int = 0


@dataclass(frozen=True, slots=True)
class Situation:
    replicas: Replicas
    model: ModelState
    causes: Sequence[Cause] = ()
    problems: Sequence[Problem] = ()
    deployment: Mapping[str, Mapping[str, Any]] | None = None  # its conditions by type
    gpu_resource: str | None = None


def decide(situation: Situation) -> list[Condition]:
    return [
        ready(situation),
        available(situation),
        progressing(situation),
        Condition("ModelCached", situation.model.status, situation.model.reason, situation.model.message),
        degraded(situation),
    ]


def ready(situation: Situation) -> Condition:
    """The service as declared is served: one replica of the current template, or none if none is wished."""
    counts = situation.replicas
    if (problem := _blocking(situation)) is not None:
        return Condition("Ready", "False", problem.reason, problem.message)
    if counts.desired == 0:
        return Condition("Ready", "True", SCALED_TO_ZERO, "no replica is wished")
    if counts.current_ready:
        return Condition("Ready", "True", SERVING, f"{counts.current_ready} of {counts.desired} replicas serve")
    reason, message = _obstacle(situation)
    return Condition("Ready", "False", reason, message)


def available(situation: Situation) -> Condition:
    """Requests are answered, be it by pods of a former template."""
    counts = situation.replicas
    if counts.ready:
        return Condition("Available", "True", SERVING, f"{counts.ready} replicas serve")
    if counts.desired == 0:
        return Condition("Available", "False", SCALED_TO_ZERO, "no replica is wished")
    return Condition("Available", "False", NO_REPLICA_READY, _obstacle(situation)[1])


def progressing(situation: Situation) -> Condition:
    """True while replicas are on their way to what the spec asks for."""
    counts = situation.replicas
    if (problem := _blocking(situation)) is not None:
        return Condition("Progressing", "False", problem.reason, problem.message)
    if counts.total == counts.current == counts.current_ready == counts.desired:
        reason = ROLLOUT_COMPLETE if counts.desired else SCALED_TO_ZERO
        return Condition("Progressing", "False", reason, f"{counts.desired} of {counts.desired} replicas are current")
    if situation.model.blocking:
        return Condition("Progressing", "True", WAITING_FOR_MODEL, situation.model.message)
    own = (situation.deployment or {}).get("Progressing", {})
    if own.get("reason") == DEADLINE_EXCEEDED:
        return Condition("Progressing", "False", DEADLINE_EXCEEDED, str(own.get("message", "")))
    if (cause := _unschedulable(situation)) is not None:
        gpu = situation.gpu_resource is not None and situation.gpu_resource in cause.message
        return Condition("Progressing", "True", WAITING_FOR_GPU if gpu else WAITING_FOR_ROOM, cause.message)
    text = f"{counts.current_ready} of {counts.desired} replicas are current and ready"
    return Condition("Progressing", "True", ROLLOUT_IN_PROGRESS, text)


def degraded(situation: Situation) -> Condition:
    failing = [cause for cause in situation.causes if cause.failing]
    if (cause := worst(failing)) is not None:
        more = f" (and {len(failing) - 1} more pods)" if len(failing) > 1 else ""
        return Condition("Degraded", "True", cause.reason, f"{cause.pod}: {cause.message}{more}")
    for problem in situation.problems:
        if problem.advisory:
            return Condition("Degraded", "True", problem.reason, problem.message)
    return Condition("Degraded", "False", AS_EXPECTED, "no pod fails")


def _blocking(situation: Situation) -> Problem | None:
    return next((problem for problem in situation.problems if not problem.advisory), None)


def _obstacle(situation: Situation) -> tuple[str, str]:
    """Why no replica of the current template serves."""
    if situation.model.blocking:
        return situation.model.reason, situation.model.message
    if (cause := worst(situation.causes)) is not None:
        return cause.reason, f"{cause.pod}: {cause.message}"
    failure = (situation.deployment or {}).get("ReplicaFailure", {})
    if failure.get("status") == "True":
        return FAILED_CREATE, str(failure.get("message", ""))
    if situation.replicas.ready:
        return ROLLOUT_IN_PROGRESS, "pods of the former template serve until those of the new one are ready"
    return STARTING, "no replica is ready yet"


def _unschedulable(situation: Situation) -> Cause | None:
    return next((cause for cause in situation.causes if cause.reason == "Unschedulable"), None)
