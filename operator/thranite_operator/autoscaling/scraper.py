"""Pods' metrics, read straight from their admin ports."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from types import TracebackType

import aiohttp
from yarl import URL

from thranite_operator import names
from thranite_operator.autoscaling import exposition
from thranite_operator.autoscaling.exposition import Incomplete, Reading

PATIENCE = 2.0  # seconds
TIMEOUT = aiohttp.ClientTimeout(total=PATIENCE)
IN_FLIGHT = 64
MAX_ANSWER = 1 << 20  # bytes
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
        self._session: aiohttp.ClientSession | None = None
        self.scrapes = 0
        self.errors = 0

    async def __aenter__(self) -> Scraper:
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=TIMEOUT,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "thranite-operator", "Accept": "text/plain"},
            auto_decompress=False,
            skip_auto_headers=("Accept-Encoding",),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

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
            return Scraped(target.uid, self._clock(), await self._ask(target.address))
        except (aiohttp.ClientError, TimeoutError, OSError, Incomplete) as error:
            self.errors += 1
            return Scraped(target.uid, self._clock(), None, f"{type(error).__name__}: {error}")

    async def _ask(self, address: str) -> Reading:
        if self._session is None:
            raise RuntimeError("the scraper is used outside of its block")
        host = f"[{address}]" if ":" in address else address
        url = URL(f"http://{host}:{self._port}{PATH}", encoded=True)
        async with self._session.get(url, allow_redirects=False) as answer:
            if answer.status != 200:
                raise Incomplete(f"HTTP {answer.status}")
            body = bytearray()
            async for chunk in answer.content.iter_any():
                body += chunk
                if len(body) > MAX_ANSWER:
                    raise Incomplete(f"the answer has more than {MAX_ANSWER} bytes")
            return exposition.parse(bytes(body))
