"""Whether the model is where pods find it, and if not, why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from thranite_operator import names
from thranite_operator.causes import cause_of, end_reason, worst
from thranite_operator.kinds import View
from thranite_operator.pods import Pod, Termination, parse_time
from thranite_operator.render.model import Location

RETRY_SECONDS = 300.0  # until a failed loader is tried again: a Secret or the hub may have changed
POD_SECONDS = 15.0  # until a Job should have a pod; the first tries may fail for an account that is only just made
LOOK_SECONDS = 30.0  # from then on between looks at a Job without one: nothing tells that its pods are refused


@dataclass(frozen=True, slots=True)
class ModelState:
    """`status` is the condition's. `blocking`: pods must not be made from the new spec yet. `retry_in`: seconds until
    the failed Job is to be replaced; 0: at once, None: never. `look_in`: seconds until another look is worth while
    though nothing is seen to change."""

    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str
    blocking: bool = False
    retry_in: float | None = None
    look_in: float | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """The API server's last word about a pod that it would not have: a quota, a webhook, Pod Security."""

    message: str
    time: str  # RFC 3339


def model_state(
    location: Location,
    job: View | None,
    loaders: Sequence[Pod],
    pods: Sequence[Pod],
    now: datetime,
    refusal: Refusal | None = None,
) -> ModelState:
    """`job`: the loader's, for this very model, if it exists. `refusal`: of a pod of that Job."""
    if location.loaded_by == names.ENGINE:
        return ModelState("True", "NotRequired", f"pods read {location.argument} themselves")
    if location.loaded_by == "init":
        return _in_pods(pods)
    if job is None:
        return ModelState("False", "Loading", "the loader is being started", blocking=True)
    conditions = ends_of(job)
    if "Complete" in conditions:
        return ModelState("True", "Cached", f"the model is in {location.claim}")
    own = [pod for pod in loaders if pod.owner == job["metadata"]["uid"]]
    if "Failed" in conditions:
        return _failed(conditions["Failed"], own, now)
    alive = [pod for pod in own if is_alive(pod)]
    return _loading(alive, own) if alive else _without_pod(job, own, now, refusal)


def _failed(condition: View, loaders: Sequence[Pod], now: datetime) -> ModelState:
    reason, message = _ends(loaders) or ("LoaderFailed", str(condition.get("message", "the loader failed")))
    age = (now - parse_time(condition["lastTransitionTime"])).total_seconds()
    return ModelState("False", reason, message, blocking=True, retry_in=max(RETRY_SECONDS - age, 0.0))


def ends_of(job: View) -> dict[str, View]:
    """The conditions by which it has ended: Complete or Failed."""
    conditions = job.get("status", {}).get("conditions", ())
    return {
        item["type"]: item for item in conditions if item["type"] in ("Complete", "Failed") and item["status"] == "True"
    }


def is_alive(loader: Pod) -> bool:
    return loader.phase in ("Pending", "Running")


def _loading(alive: Sequence[Pod], loaders: Sequence[Pod]) -> ModelState:
    if (cause := worst(cause for pod in alive if (cause := cause_of(pod)))) is not None:
        return ModelState("False", cause.reason, cause.message, blocking=True)
    phase = "the loader runs" if any(pod.phase == "Running" for pod in alive) else "the loader is being started"
    return ModelState("False", "Loading", phase + _former(loaders), blocking=True)


def _without_pod(job: View, loaders: Sequence[Pod], now: datetime, refusal: Refusal | None) -> ModelState:
    """None has been made yet, or the Job has not told yet whether it makes another one, or it may not."""
    meta = job["metadata"]
    left = POD_SECONDS - (now - parse_time(meta["creationTimestamp"])).total_seconds()
    look_in = left if left > 0 else LOOK_SECONDS
    if left <= 0 and refusal is not None and not _is_past(refusal, loaders):
        return ModelState("False", "FailedCreate", refusal.message + _former(loaders), blocking=True, look_in=look_in)
    if (before := _ends(loaders)) is not None:
        return ModelState("False", *before, blocking=True, look_in=look_in)
    text = "the loader is being started"
    if left <= 0 and not loaders:
        text = f"Job {meta['name']} has no pod yet: `kubectl describe job {meta['name']}` may tell why"
    return ModelState("False", "Loading", text, blocking=True, look_in=look_in)


def _is_past(refusal: Refusal, loaders: Sequence[Pod]) -> bool:
    """Whether a pod was made since."""
    return any(parse_time(pod.created) > parse_time(refusal.time) for pod in loaders)


def _former(loaders: Sequence[Pod]) -> str:
    before = _ends(loaders)
    return f"; before: {before[1]}" if before else ""


def _ends(loaders: Sequence[Pod]) -> tuple[str, str] | None:
    """Reason and message of the latest failed end."""
    ends = [item.ended for pod in loaders for item in pod.containers if item.ended and item.ended.exit_code]
    if not ends:
        return None
    return _telling(max(ends, key=lambda end: end.time))


def _telling(end: Termination) -> tuple[str, str]:
    reason = end_reason(end)
    return ("LoaderFailed" if reason == "ContainerFailed" else reason), end.message or f"exit code {end.exit_code}"


def _in_pods(pods: Sequence[Pod]) -> ModelState:
    """Each pod has a copy; one that runs has fetched it."""
    if any(item.name == names.ENGINE and (item.running or item.ended) for pod in pods for item in pod.containers):
        return ModelState("True", "Cached", "pods keep a copy each")
    loading = [item for pod in pods for item in pod.containers if item.name in (names.CHECK, names.DOWNLOAD)]
    failed = [item.ended for item in loading if item.ended and item.ended.exit_code]
    if failed:
        return ModelState("False", *_telling(max(failed, key=lambda end: end.time)))
    return ModelState("False", "Loading", "pods fetch the model when they start")
