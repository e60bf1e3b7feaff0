"""Cron windows in which more replicas are wished whatever the load is."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from thranite_operator.autoscaling.spec import Schedule

FIELDS = 5


def problem(schedule: Schedule) -> str | None:
    """What the API server cannot check: whether the expression and the time zone exist."""
    try:
        ZoneInfo(schedule.time_zone)
    except (KeyError, ValueError, OSError):
        return f"schedule {schedule.name}: there is no time zone {schedule.time_zone!r}"
    if len(schedule.start.split()) != FIELDS:
        return f"schedule {schedule.name}: {schedule.start!r} must have five fields: minute, hour, day, month, weekday"
    try:
        CronSim(schedule.start, datetime(2000, 1, 1, tzinfo=UTC))
    except CronSimError as error:
        return f"schedule {schedule.name}: {schedule.start!r} is no cron expression: {error}"
    return None


def active(schedules: Sequence[Schedule], now: float, lead_seconds: float) -> Schedule | None:
    """The open window that asks for most. A window opens `lead_seconds` early: so long replicas take to start."""
    windows = [item for item in schedules if problem(item) is None and _open(item, now, lead_seconds)]
    return max(windows, key=lambda item: item.min_replicas, default=None)


def _open(schedule: Schedule, now: float, lead_seconds: float) -> bool:
    """Whether the latest start within `lead_seconds` from now has not ended."""
    zone = ZoneInfo(schedule.time_zone)
    latest = datetime.fromtimestamp(now + lead_seconds, zone)
    # The iteration is exclusive of where it begins.
    starts = CronSim(schedule.start, latest + timedelta(minutes=1), reverse=True)
    begun = next((start for start in starts if start <= latest), None)
    return begun is not None and now < begun.timestamp() + schedule.duration_seconds
