"""Pods' metrics, read straight from their admin ports."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from thranite_operator import names
from thranite_operator.autoscaling import exposition
from thranite_operator.autoscaling.exposition import Incomplete, Reading
from thranite_operator.autoscaling.http_get import BadAnswer, get

PATIENCE = 2.0  # seconds
IN_FLIGHT = 64
PATH = f"/metrics?{exposition.QUERY}"


@dataclass(frozen=True, slots=True)
class Target:
    """`address`: the pod's IP. `failed`: the last scrape of it did."""

    uid: str
    address: str
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Scraped:
    """`reading` is None where `error` says why. `time`: when the answer was there."""

    uid: str
    time: float
    reading: Reading | None
    error: str = ""


class Scraper:
    """At most `IN_FLIGHT` questions at once, of all services together, and as many to pods whose last scrape failed:
    those cost the full time-out, and must not make the others' answers old. Connections are not kept: between two
    scrapes servers close them, and thousands would wait for nothing."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, port: int = names.ADMIN_PORT) -> None:
        self._clock = clock
        self._port = port
        self._slots = asyncio.Semaphore(IN_FLIGHT)
        self._slots_of_failed = asyncio.Semaphore(IN_FLIGHT)
        self.scrapes = 0
        self.errors = 0

    def now(self) -> float:
        """The clock of `Scraped.time`."""
        return self._clock()

    async def scrape(self, targets: Collection[Target]) -> list[Scraped]:
        """In the targets' order."""
        return await asyncio.gather(*(self._one(target) for target in targets))

    async def _one(self, target: Target) -> Scraped:
        if not target.failed:
            async with self._slots:
                return await self._scraped(target)
        try:
            async with asyncio.timeout(PATIENCE):
                await self._slots_of_failed.acquire()
        except TimeoutError:
            self.errors += 1
            return Scraped(target.uid, self._clock(), None, "too many pods are silent")
        try:
            return await self._scraped(target)
        finally:
            self._slots_of_failed.release()

    async def _scraped(self, target: Target) -> Scraped:
        self.scrapes += 1
        try:
            async with asyncio.timeout(PATIENCE):
                body = await get(target.address, self._port, PATH)
            return Scraped(target.uid, self._clock(), exposition.parse(body))
        except (BadAnswer, TimeoutError, OSError, Incomplete) as error:
            self.errors += 1
            return Scraped(target.uid, self._clock(), None, f"{type(error).__name__}: {error}")
