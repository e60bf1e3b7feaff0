"""Why a pod does not serve: its most telling cause, in one word and in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from thranite_operator import names
from thranite_operator.pods import Container, Pod, Termination

# Exit codes of `thranite`, see its docs/operations.md; tests/contract holds the two together.
EXIT_REASONS: Mapping[int, str] = {
    2: "InvalidConfiguration",
    3: "InvalidConfiguration",
    4: "ModelNotFound",
    5: "UnsupportedModel",
    6: "InvalidCheckpoint",
    7: "DoesNotFit",
    8: "EngineDied",
    9: "EngineStalled",
}
IMAGE_REASONS = ("ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull")
SETUP_REASONS = ("InvalidImageName", "CreateContainerConfigError", "CreateContainerError", "RunContainerError")
START_REASONS = ("StartError", "ContainerCannotRun")  # of an end that was no start: the image lacks the program
READINESS, LIVENESS = "Readiness probe", "Liveness probe"  # how kubelet's words about them begin
MAX_MESSAGE = 1024


@dataclass(frozen=True, slots=True)
class Cause:
    """`rank`: lower is more telling. `failing`: it will not go away by waiting for a slow start or for room."""

    rank: int
    reason: str
    message: str
    pod: str
    failing: bool = True


def worst(causes: Iterable[Cause]) -> Cause | None:
    return min(causes, key=lambda cause: (cause.rank, cause.pod), default=None)


def cause_of(pod: Pod, probe_message: str = "") -> Cause | None:
    """None for a pod that serves or may still come up. `probe_message`: kubelet's last word about its probes."""
    if pod.ready or pod.deleting:
        return None
    if pod.unscheduled is not None:
        return Cause(6, "Unschedulable", pod.unscheduled, pod.name, failing=False)
    found = [cause for item in pod.containers if (cause := _of_container(item, pod, probe_message))]
    if (cause := worst(found)) is not None:
        return cause
    if pod.phase == "Failed":
        return Cause(4, _word(pod.reason) or "PodFailed", pod.message or "the pod failed", pod.name)
    return None


def _of_container(item: Container, pod: Pod, probe_message: str) -> Cause | None:
    if item.waiting is not None:
        reason, message = item.waiting
        if reason in IMAGE_REASONS:
            return Cause(1, "ErrImagePull", message or f"the image of {item.name} cannot be pulled", pod.name)
        if reason in SETUP_REASONS:
            return Cause(1, reason, message, pod.name)
    if item.ended is not None and not (item.over and item.ended.exit_code == 0):
        return _of_end(item, item.ended, pod, probe_message)
    if unready(item) and probe_message.startswith(READINESS):
        return Cause(5, "ReadinessProbeFailed", probe_message, pod.name)
    return None


def unready(item: Container) -> bool:
    """Up and not serving: for the moment until its first readiness probe, or because that fails."""
    return item.name == names.ENGINE and item.running and item.started and not item.ready


def probe_suspected(pod: Pod) -> bool:
    """Whether kubelet's events about its probes are worth reading."""
    if pod.ready or pod.deleting:
        return False
    cause = cause_of(pod)
    return any(map(unready, pod.containers)) if cause is None else cause.reason in ("ProbeFailed", "Killed")


def _of_end(item: Container, end: Termination, pod: Pod, probe_message: str) -> Cause:
    """An engine that ends well and is started again was ended by kubelet, for a probe. One that was killed may have
    been too: a frozen process does not heed the request to end."""
    text = end.message or f"exit code {end.exit_code}"
    if end.reason == "OOMKilled":
        limit = "resources.memory" if item.name == names.ENGINE else "its limit"
        return Cause(2, "OOMKilled", f"{item.name} used more memory than {limit} allows", pod.name)
    if end.reason in START_REASONS:
        return Cause(1, "RunContainerError", f"{item.name}: {text}"[:MAX_MESSAGE], pod.name)
    probed = end.exit_code in (0, 143) or (end.exit_code == 137 and probe_message.startswith(LIVENESS))
    if probed and item.name == names.ENGINE:
        return Cause(3, "ProbeFailed", probe_message or "kubelet restarted the container: a probe failed", pod.name)
    return Cause(2, exit_reason(end.exit_code), f"{item.name}: {text}"[:MAX_MESSAGE], pod.name)


def exit_reason(code: int) -> str:
    if code > 128:
        return "Killed"
    return EXIT_REASONS.get(code, "ContainerFailed")


def end_reason(end: Termination) -> str:
    """Of a failed end."""
    if end.reason in START_REASONS:
        return "RunContainerError"
    return "OOMKilled" if end.reason == "OOMKilled" else exit_reason(end.exit_code)


def last_failure(pods: Iterable[Pod], previous: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The most recent failed end of a container, also of a pod that serves again."""
    ends = [
        (item.ended.time, pod.name, item, item.ended)
        for pod in pods
        if not pod.deleting
        for item in pod.containers
        if item.ended is not None and (item.ended.exit_code != 0 or not item.over)
    ]
    if not ends:
        return previous
    time, pod_name, item, end = max(ends, key=lambda entry: entry[:2])
    if previous is not None and str(previous.get("time", "")) >= time:
        return previous
    reason = end_reason(end) if end.exit_code else "Restarted"
    failure = {"pod": pod_name, "container": item.name, "reason": reason, "exitCode": end.exit_code, "time": time}
    return {**failure, "message": end.message[:MAX_MESSAGE]} if end.message else failure


def _word(text: str) -> str:
    """A reason must be CamelCase without punctuation: "OutOfnvidia.com/gpu" is not."""
    return "".join(letter for letter in text if letter.isalnum())
