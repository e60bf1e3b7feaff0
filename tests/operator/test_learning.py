"""What is learned and told: start times of pods, events of transitions."""

from __future__ import annotations

from datetime import UTC, datetime

from thranite_operator.events import transitions
from thranite_operator.pods import Container, Pod
from thranite_operator.start_time import StartTimes

BEGAN = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


def started(uid: str, seconds: int, hour: int = 13, restarts: int = 0) -> Pod:
    return Pod(
        name=uid,
        uid=uid,
        component="engine",
        template="t",
        phase="Running",
        ready=True,
        created=f"2026-01-01T{hour}:00:00Z",
        scheduled_at=f"2026-01-01T{hour}:00:00Z",
        ready_at=f"2026-01-01T{hour}:{seconds // 60:02}:{seconds % 60:02}Z",
        containers=(Container("engine", True, True, restarts),),
    )


def test_the_first_start_is_taken_as_it_is() -> None:
    known, _ = StartTimes(BEGAN).learn(None, [started("a", 120)])
    assert known == 120


def test_later_starts_move_it_slowly_and_each_pod_counts_once() -> None:
    known, after = StartTimes(BEGAN).learn(100, [started("a", 200)])
    assert known == 130
    known, after = after.learn(known, [started("a", 200)])
    assert known == 130
    known, _ = after.learn(known, [started("a", 200), started("b", 130)])
    assert known == 130


def test_pods_that_were_ready_before_the_operator_are_no_news() -> None:
    known, _ = StartTimes(BEGAN).learn(100, [started("a", 900, hour=11)])
    assert known == 100


def test_restarted_pods_teach_nothing() -> None:
    known, _ = StartTimes(BEGAN).learn(None, [started("a", 120, restarts=2)])
    assert known is None


def status(**conditions: tuple[str, str]) -> dict[str, list[dict[str, str]]]:
    items = [{"type": kind, "status": truth, "reason": reason, "message": "why"} for kind, (truth, reason) in
             conditions.items()]  # fmt: skip
    return {"conditions": items}


def test_events_only_for_what_is_new() -> None:
    before = status(Ready=("False", "Starting"), Progressing=("True", "RolloutInProgress"))
    after = status(Ready=("True", "Serving"), Progressing=("True", "RolloutInProgress"))
    assert [(event.type, event.reason) for event in transitions(before, after)] == [("Normal", "Serving")]
    assert list(transitions(after, after)) == []


def test_conditions_that_share_a_reason_tell_it_once_and_loudly() -> None:
    after = status(Ready=("False", "OOMKilled"), Degraded=("True", "OOMKilled"))
    (event,) = transitions({}, after)
    assert (event.type, event.reason, event.message) == ("Warning", "OOMKilled", "Ready: why")


def test_an_ordinary_start_is_no_warning() -> None:
    after = status(Ready=("False", "Starting"), Degraded=("False", "AsExpected"), ModelCached=("False", "Loading"))
    assert [(event.type, event.reason) for event in transitions({}, after)] == [("Normal", "Loading")]
