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


@dataclass(frozen=True, slots=True)
class ModelState:
    """`status` is the condition's. `blocking`: pods must not be made from the new spec yet. `retry_in`: seconds until
    the failed Job is to be replaced; 0: at once, None: never."""

    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str
    blocking: bool = False
    retry_in: float | None = None


def model_state(
    location: Location, job: View | None, loaders: Sequence[Pod], pods: Sequence[Pod], now: datetime
) -> ModelState:
    """`job`: the loader's, for this very model, if it exists."""
    if location.loaded_by == names.ENGINE:
        return ModelState("True", "NotRequired", f"pods read {location.argument} themselves")
    if location.loaded_by == "init":
        return _in_pods(pods)
    if job is None:
        return ModelState("False", "Loading", "the loader is being started", blocking=True)
    conditions = {
        item["type"]: item for item in job.get("status", {}).get("conditions", ()) if item["status"] == "True"
    }
    if "Complete" in conditions:
        return ModelState("True", "Cached", f"the model is in {location.claim}")
    own = [pod for pod in loaders if pod.name.startswith(f"{job['metadata']['name']}-")]
    if "Failed" in conditions:
        return _failed(conditions["Failed"], own, now)
    return _loading(own)


def _failed(condition: View, loaders: Sequence[Pod], now: datetime) -> ModelState:
    reason, message = _ends(loaders) or ("LoaderFailed", str(condition.get("message", "the loader failed")))
    age = (now - parse_time(condition["lastTransitionTime"])).total_seconds()
    return ModelState("False", reason, message, blocking=True, retry_in=max(RETRY_SECONDS - age, 0.0))


def _loading(loaders: Sequence[Pod]) -> ModelState:
    alive = [pod for pod in loaders if pod.phase in ("Pending", "Running")]
    if (cause := worst(cause for pod in alive if (cause := cause_of(pod)))) is not None:
        return ModelState("False", cause.reason, cause.message, blocking=True)
    before = _ends(loaders)
    if before is not None and not alive:  # the Job has not told yet whether it makes another pod
        return ModelState("False", *before, blocking=True)
    suffix = f"; before: {before[1]}" if before else ""
    phase = "the loader runs" if any(pod.phase == "Running" for pod in alive) else "the loader is being started"
    return ModelState("False", "Loading", phase + suffix, blocking=True)


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
