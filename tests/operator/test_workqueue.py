"""The work queue: each key once, never twice at work, paced, and slower after failures."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
from collections.abc import Awaitable, Callable

import pytest

from thranite_operator import workqueue
from thranite_operator.workqueue import WorkQueue

PACE = 0.02


def in_loop(story: Callable[[WorkQueue[str]], Awaitable[None]], pace: float = PACE) -> None:
    async def run() -> None:
        await asyncio.wait_for(story(WorkQueue[str](pace)), 20)

    asyncio.run(run())


async def nothing_due(queue: WorkQueue[str], seconds: float) -> bool:
    try:
        await asyncio.wait_for(queue.take(), seconds)
    except TimeoutError:
        return True
    return False


def test_a_key_added_often_comes_once() -> None:
    async def story(queue: WorkQueue[str]) -> None:
        for _ in range(100):
            queue.add("a")
        assert len(queue) == 1
        assert await queue.take() == "a"
        queue.done("a")
        assert await nothing_due(queue, 3 * PACE)

    in_loop(story)


def test_a_key_added_while_at_work_comes_again_after() -> None:
    async def story(queue: WorkQueue[str]) -> None:
        queue.add("a")
        await queue.take()
        queue.add("a")
        assert await nothing_due(queue, 3 * PACE)
        queue.done("a")
        assert await queue.take() == "a"

    in_loop(story)


def test_an_earlier_wish_wins() -> None:
    async def story(queue: WorkQueue[str]) -> None:
        queue.add("a", delay=60)
        queue.add("a", delay=0)
        assert await queue.take() == "a"
        queue.done("a", again_in=60)
        queue.add("a")
        assert await queue.take() == "a"

    in_loop(story)


def test_two_beginnings_of_a_key_keep_their_distance() -> None:
    async def story(queue: WorkQueue[str]) -> None:
        loop = asyncio.get_running_loop()
        starts = []
        for _ in range(5):
            queue.add("a")
            await queue.take()
            starts.append(loop.time())
            queue.done("a")
        gaps = [after - before for before, after in itertools.pairwise(starts)]
        assert min(gaps) >= PACE * 0.9

    in_loop(story)


def test_failures_wait_longer_and_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workqueue, "FIRST_DELAY", 0.02)

    async def story(queue: WorkQueue[str]) -> None:
        delays = []
        for _ in range(4):
            queue.add("a")
            await queue.take()
            delays.append(queue.failed("a"))
            queue.add("a")  # an event does not shorten the wait
            assert await nothing_due(queue, delays[-1] * 0.5)
        assert delays[3] > 2 * delays[0]
        await queue.take()
        queue.done("a")
        queue.add("a")
        await queue.take()
        assert queue.failed("a") < 0.03

    in_loop(story)


def test_the_wait_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workqueue, "FIRST_DELAY", 1e-6)
    monkeypatch.setattr(workqueue, "LONGEST_DELAY", 1e-4)

    async def story(queue: WorkQueue[str]) -> None:
        queue.add("a")
        for _ in range(200):
            await queue.take()
            assert queue.failed("a") <= 1.25e-4

    in_loop(story, pace=0)


@pytest.mark.parametrize("turns", range(5))
def test_a_cancellation_is_never_lost(turns: int) -> None:
    """Also at the very moment at which something is added, some turns of the loop later or earlier."""

    async def story(queue: WorkQueue[str]) -> None:
        queue.add("later", delay=60)
        taking = asyncio.create_task(queue.take())
        await asyncio.sleep(0.01)
        queue.add("sooner", delay=50)
        for _ in range(turns):
            await asyncio.sleep(0)
        taking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(taking, 1)

    in_loop(story)


def test_other_threads_may_add() -> None:
    async def story(queue: WorkQueue[str]) -> None:
        thread = threading.Thread(target=queue.add_from_thread, args=("a",))
        thread.start()
        assert await queue.take() == "a"
        thread.join()

    in_loop(story)


def test_a_forgotten_key_leaves_nothing() -> None:
    async def story(queue: WorkQueue[str]) -> None:
        queue.add("a")
        await queue.take()
        queue.forget("a")
        assert len(queue) == 0
        assert queue.longest_work == 0
        queue.add("a")
        assert await queue.take() == "a"

    in_loop(story)


@pytest.mark.parametrize("seed", range(5))
def test_no_wish_is_lost_and_no_key_is_at_work_twice(seed: int) -> None:
    """Workers and a source of events; after the last event of a key, its work begins once more."""
    source = random.Random(seed)
    keys = [f"k{index}" for index in range(6)]

    async def story(queue: WorkQueue[str]) -> None:
        working: set[str] = set()
        version = dict.fromkeys(keys, 0)
        seen = dict.fromkeys(keys, 0)

        async def work() -> None:
            while True:
                key = await queue.take()
                assert key not in working
                working.add(key)
                seen[key] = version[key]
                await asyncio.sleep(source.random() * 0.003)
                working.discard(key)
                queue.done(key)

        workers = [asyncio.create_task(work()) for _ in range(3)]
        for _ in range(200):
            key = source.choice(keys)
            version[key] += 1
            queue.add(key)
            await asyncio.sleep(source.random() * 0.002)
        while seen != version:
            await asyncio.sleep(0.01)
        assert all(not worker.done() for worker in workers)
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)

    in_loop(story, pace=0.001)
