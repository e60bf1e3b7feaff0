"""Cron windows, with their time zones and their lead."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from thranite_operator.autoscaling.schedules import active, problem
from thranite_operator.autoscaling.spec import Schedule

WORK = Schedule(name="work", start="0 9 * * MON-FRI", duration_seconds=3600, min_replicas=3, time_zone="Europe/Berlin")


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("now", "lead", "is_open"),
    [
        ("2026-07-01T06:59:59", 0, False),
        ("2026-07-01T07:00:00", 0, True),  # 9:00 in summer
        ("2026-07-01T07:59:59", 0, True),
        ("2026-07-01T08:00:00", 0, False),
        ("2026-12-01T07:30:00", 0, False),
        ("2026-12-01T08:30:00", 0, True),  # 9:30 in winter
        ("2026-07-04T07:30:00", 0, False),  # a Saturday
        ("2026-07-01T06:57:00", 300, True),
        ("2026-07-01T06:54:00", 300, False),
    ],
)
def test_a_window_opens_early_by_its_lead(now: str, lead: float, is_open: bool) -> None:
    assert (active((WORK,), at(now), lead) is WORK) == is_open


def test_the_window_that_asks_for_most_counts() -> None:
    more = Schedule(name="more", start="30 9 * * *", duration_seconds=600, min_replicas=9, time_zone="Europe/Berlin")
    assert active((WORK, more), at("2026-07-01T07:35:00"), 0) is more
    assert active((WORK, more), at("2026-07-01T07:45:00"), 0) is WORK


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"time_zone": "Europe/Nowhere"}, "no time zone"), ({"start": "61 * * * *"}, "no cron expression")],
)
def test_what_the_api_server_cannot_check_is_named_and_left_out(fields: dict[str, str], words: str) -> None:
    wrong = Schedule(**{"name": "x", "start": "* * * * *", "duration_seconds": 60, "min_replicas": 2, **fields})  # type: ignore[arg-type]
    assert words in (problem(wrong) or "")
    assert active((wrong,), at("2026-07-01T07:00:00"), 0) is None
