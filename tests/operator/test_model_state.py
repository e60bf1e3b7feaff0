"""What is said of the model while its loader fails and is tried again."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from thranite_operator import names
from thranite_operator.model_state import ModelState, model_state
from thranite_operator.pods import Container, Pod, Termination
from thranite_operator.render.model import Location

NOW = datetime(2026, 1, 2, tzinfo=UTC)
LOCATION = Location("/models/m", claim="models", loaded_by="job")
REFUSED = Termination("DoesNotFit", 1, "the claim lacks 3 GiB", "2026-01-01T23:59:00Z")


def loader(name: str, phase: str, ended: Termination | None = None) -> Pod:
    container = Container(names.DOWNLOAD, False, True, 0, running=phase == "Running", ended=ended, over=bool(ended))
    return Pod(name, name, "loader", "", phase, False, "2026-01-01T23:58:00Z", containers=(container,))


def state(*loaders: Pod, failed: bool = False) -> ModelState:
    condition = {"type": "Failed", "status": "True", "lastTransitionTime": "2026-01-01T23:59:30Z"}
    job: dict[str, Any] = {"metadata": {"name": "m"}, "status": {"conditions": [condition] if failed else []}}
    return model_state(LOCATION, job, loaders, (), NOW)


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
    assert state().message == "the loader is being started"
