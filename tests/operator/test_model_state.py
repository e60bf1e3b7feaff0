"""What is said of the model while its loader fails and is tried again."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any

from thranite_operator import names
from thranite_operator.model_state import ModelState, Refusal, model_state
from thranite_operator.pods import Container, Pod, Termination
from thranite_operator.render.model import Location

NOW = datetime(2026, 1, 2, tzinfo=UTC)
LOCATION = Location("/models/m", claim="models", loaded_by="job")
MADE = "2026-01-01T23:58:00Z"
QUOTA = Refusal("exceeded quota", "2026-01-01T23:59:55Z")
REFUSED = Termination("DoesNotFit", 1, "the claim lacks 3 GiB", "2026-01-01T23:59:00Z")


def loader(name: str, phase: str, ended: Termination | None = None) -> Pod:
    container = Container(names.DOWNLOAD, False, True, 0, running=phase == "Running", ended=ended, over=bool(ended))
    return Pod(name, name, "loader", "", phase, False, MADE, containers=(container,), owner="u")


def state(*loaders: Pod, failed: bool = False, made: str = MADE, refusal: Refusal | None = None) -> ModelState:
    condition = {"type": "Failed", "status": "True", "lastTransitionTime": "2026-01-01T23:59:30Z"}
    meta = {"name": "m", "uid": "u", "creationTimestamp": made}
    job: dict[str, Any] = {"metadata": meta, "status": {"conditions": [condition] if failed else []}}
    return model_state(LOCATION, job, loaders, (), NOW, refusal)


def test_a_loader_that_failed_is_not_said_to_be_started_before_its_job_makes_another() -> None:
    """The Job tells that it failed for good only after its last pod has ended."""
    gone = loader("m-1", "Failed", REFUSED)
    reasons = [
        state(loader("m-1", "Running")),
        state(gone),
        state(gone, loader("m-2", "Pending")),
        state(gone, loader("m-2", "Failed", REFUSED)),
        state(gone, loader("m-2", "Failed", REFUSED), failed=True),
    ]
    assert [item.reason for item in reasons[:2]] == ["Loading", reasons[4].reason]
    assert (reasons[2].reason, reasons[2].message) == (
        "Loading", "the loader is being started; before: the claim lacks 3 GiB",
    )  # fmt: skip
    assert reasons[3].reason == reasons[4].reason != "Loading"
    assert reasons[1].message == reasons[3].message == "the claim lacks 3 GiB"
    assert all(item.blocking for item in reasons)


def test_no_loader_yet_is_being_started() -> None:
    fresh = state(made="2026-01-01T23:59:50Z", refusal=QUOTA)
    assert (fresh.reason, fresh.message, fresh.look_in) == ("Loading", "the loader is being started", 5)


def test_a_job_that_gets_no_pod_is_told_with_the_way_to_see_why() -> None:
    found = state()
    assert (found.reason, found.look_in) == ("Loading", 30)
    assert "kubectl describe job m" in found.message


def test_a_refused_pod_is_told_until_one_is_made() -> None:
    assert (state(refusal=QUOTA).reason, state(refusal=QUOTA).message) == ("FailedCreate", "exceeded quota")
    assert state(refusal=QUOTA).blocking
    assert state(loader("m-1", "Running"), refusal=QUOTA).reason == "Loading"
    again = state(loader("m-1", "Failed", REFUSED), refusal=QUOTA)
    assert (again.reason, again.message) == ("FailedCreate", "exceeded quota; before: the claim lacks 3 GiB")
    former = Refusal("exceeded quota", "2026-01-01T23:57:00Z")
    assert state(loader("m-1", "Failed", REFUSED), refusal=former).message == "the claim lacks 3 GiB"
    assert state(loader("m-1", "Succeeded"), refusal=former).message == "the loader is being started"


def test_pods_of_a_former_job_of_that_name_say_nothing() -> None:
    former = dataclasses.replace(loader("m-1", "Failed", REFUSED), owner="former")
    assert state(former, made="2026-01-01T23:59:59Z").message == "the loader is being started"
