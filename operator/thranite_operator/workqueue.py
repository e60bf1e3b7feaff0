"""Keys to reconcile: each at most once in the queue, at most once at work, and never more often than the pace allows.

A key that is added while it is at work comes again after; one that fails comes again after a growing, jittered delay.
All methods run in the event loop's thread; `add_from_thread` is the one exception.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

FIRST_DELAY, LONGEST_DELAY = 0.5, 300.0


@dataclass(slots=True)
class _Entry(Generic[K]):
    due: float
    serial: int
    key: K = field(compare=False)

    def __lt__(self, other: _Entry[K]) -> bool:
        return (self.due, self.serial) < (other.due, other.serial)


class WorkQueue(Generic[K]):
    def __init__(self, pace: float = 0.5) -> None:
        """`pace`: least seconds between two beginnings of one key's work."""
        self._pace = pace
        self._loop = asyncio.get_running_loop()
        self._heap: list[_Entry[K]] = []
        self._due: dict[K, float] = {}
        self._working: dict[K, float] = {}  # since when
        self._again: dict[K, float] = {}  # asked for while at work, and when
        self._started: dict[K, float] = {}
        self._failures: dict[K, int] = {}
        self._serial = 0
        self._changed = asyncio.Event()

    def add(self, key: K, delay: float = 0.0) -> None:
        """An earlier wish wins over a later one."""
        now = self._loop.time()
        due = max(now + delay, self._started.get(key, -self._pace) + self._pace)
        if key in self._working:
            self._again[key] = min(due, self._again.get(key, due))
            return
        if key in self._due and self._due[key] <= due:
            return
        self._due[key] = due
        self._serial += 1
        heapq.heappush(self._heap, _Entry(due, self._serial, key))
        self._changed.set()

    def add_from_thread(self, key: K) -> None:
        self._loop.call_soon_threadsafe(self.add, key)

    async def take(self) -> K:
        """Wait for a key that is due. `done`, `failed` or `forget` must follow."""
        while True:
            entry = self._next_due()
            if entry is not None:
                del self._due[entry.key]
                self._working[entry.key] = self._started[entry.key] = self._loop.time()
                return entry.key
            await self._wait()

    def done(self, key: K, again_in: float | None = None) -> None:
        self._failures.pop(key, None)
        self._finish(key)
        if again_in is not None:
            self.add(key, again_in)

    def failed(self, key: K) -> float:
        """Come again after a delay, which is returned. Whoever adds the key meanwhile does not shorten it."""
        count = self._failures[key] = self._failures.get(key, 0) + 1
        delay: float = min(FIRST_DELAY * 2.0 ** min(count - 1, 20), LONGEST_DELAY) * random.uniform(0.75, 1.25)
        self._started[key] = self._loop.time() + delay - self._pace
        self._finish(key)
        self.add(key, delay)
        return delay

    def forget(self, key: K) -> None:
        """The object is gone; a wish that came meanwhile still counts, for one of the same name."""
        self._failures.pop(key, None)
        again = key in self._again
        self._finish(key)
        if not again:
            self._started.pop(key, None)

    def _finish(self, key: K) -> None:
        del self._working[key]
        due = self._again.pop(key, None)
        if due is not None:
            self.add(key, max(due - self._loop.time(), 0.0))

    def _next_due(self) -> _Entry[K] | None:
        now = self._loop.time()
        while self._heap and self._heap[0].due <= now:
            entry = heapq.heappop(self._heap)
            if self._due.get(entry.key) == entry.due:  # not superseded by an earlier wish
                return entry
        return None

    async def _wait(self) -> None:
        self._changed.clear()
        timeout = max(self._heap[0].due - self._loop.time(), 0.0) if self._heap else None
        try:
            async with asyncio.timeout(timeout):  # wait_for of Python 3.11 can lose a cancellation
                await self._changed.wait()
        except TimeoutError:
            return  # the first one is due

    def __len__(self) -> int:
        return len(self._due)

    @property
    def longest_work(self) -> float:
        """Seconds that the oldest present work has taken."""
        now = self._loop.time()
        return max((now - since for since in self._working.values()), default=0.0)
