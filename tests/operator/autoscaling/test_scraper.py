"""Many pods at once, of which some do not answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tests.support.apiserver import free_ports
from tests.support.pretended_runtimes import Exported, Runtimes
from thranite_operator.autoscaling.scraper import IN_FLIGHT, PATIENCE, Scraped, Scraper, Target

HEALTHY = [Target(f"h{index}", f"127.1.0.{index + 1}") for index in range(20)]


def silent(count: int) -> list[Target]:
    """That were silent before."""
    return [Target(f"s{index}", f"127.2.{index // 250}.{index % 250 + 1}", failed=True) for index in range(count)]


@asynccontextmanager
async def silence(targets: Sequence[Target], port: int) -> AsyncIterator[None]:
    """They take connections and say nothing."""
    taken: list[asyncio.StreamWriter] = []

    async def take(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.append(writer)

    server = await asyncio.start_server(take, [target.address for target in targets], port)
    try:
        yield
    finally:
        server.close()
        for writer in taken:
            writer.close()


@dataclass(frozen=True)
class Round:
    """`answered`, `ended`: seconds until all healthy pods had answered, and until the silent ones' round ended."""

    healthy: Sequence[Scraped]
    silent: Sequence[Scraped]
    answered: float
    ended: float


async def one_round(count: int) -> Round:
    targets = silent(count)
    (port,) = free_ports(1)
    exported = {target.address: Exported(waiting=3) for target in HEALTHY}
    scraper = Scraper(port=port)
    async with silence(targets, port), Runtimes(port, exported, list(exported)):
        began = time.monotonic()
        others = asyncio.create_task(scraper.scrape(targets))
        await asyncio.sleep(0)  # they come first
        answers = await scraper.scrape(HEALTHY)
        answered = time.monotonic() - began
        return Round(answers, await others, answered, time.monotonic() - began)


def test_pods_that_were_silent_keep_nobody_waiting() -> None:
    seen = asyncio.run(one_round(4 * IN_FLIGHT))
    assert [answer.reading.waiting for answer in seen.healthy if answer.reading] == [3.0] * len(HEALTHY)
    assert seen.answered < PATIENCE / 2


def test_a_round_of_silent_pods_ends_however_many_there_are() -> None:
    seen = asyncio.run(one_round(4 * IN_FLIGHT))
    assert all(answer.reading is None for answer in seen.silent)
    assert seen.ended < 2.5 * PATIENCE
    unasked = [answer for answer in seen.silent if answer.error == "too many pods are silent"]
    assert len(unasked) >= IN_FLIGHT
