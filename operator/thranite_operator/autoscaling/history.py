"""The last two readings of each pod: what its gauges say and how fast its counters move."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from thranite_operator.autoscaling.exposition import Reading
from thranite_operator.autoscaling.sample import Load, Rates

STALE_INTERVALS = 3


@dataclass(frozen=True, slots=True)
class Seen:
    time: float
    reading: Reading
    load: Load


@dataclass(slots=True)
class History:
    """By pod uid: a pod that comes back under its name begins anew. Times are seconds of any clock."""

    _seen: dict[str, Seen] = field(default_factory=dict)

    def add(self, uid: str, reading: Reading, now: float) -> None:
        before = self._seen.get(uid)
        rates = _rates(before, reading, now) if before is not None and now > before.time else None
        load = Load(
            waiting=reading.waiting, running=reading.running, kv_cache_usage=reading.kv_cache_usage, rates=rates
        )
        self._seen[uid] = Seen(now, reading, load)

    def load(self, uid: str, now: float, interval: float) -> Load | None:
        """None if there is nothing, or nothing fresh."""
        seen = self._seen.get(uid)
        return seen.load if seen is not None and now - seen.time <= STALE_INTERVALS * interval else None

    def age(self, uid: str, now: float) -> float | None:
        seen = self._seen.get(uid)
        return now - seen.time if seen is not None else None

    def keep(self, uids: Collection[str]) -> None:
        """Forget all other pods."""
        for uid in self._seen.keys() - uids:
            del self._seen[uid]


def _rates(before: Seen, reading: Reading, now: float) -> Rates | None:
    """None where a counter became less for one model of several, unloaded or restarted: the others' go on, so the sum
    tells nothing."""
    several = max(before.reading.models, reading.models) > 1
    if several and (before.reading.received > reading.received or before.reading.finished > reading.finished):
        return None
    seconds = now - before.time
    return Rates(
        received=_increase(before.reading.received, reading.received) / seconds,
        finished=_increase(before.reading.finished, reading.finished) / seconds,
        rejected=_increase(before.reading.rejected, reading.rejected) / seconds,
        seconds=seconds,
    )


def _increase(before: float, after: float) -> float:
    """A counter that has become less began at 0 in between: the runtime was restarted."""
    return after - before if after >= before else after
