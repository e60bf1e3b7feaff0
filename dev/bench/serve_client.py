"""Client processes of the serving benchmarks: `serve_client.py KIND`, orders as JSON on stdin, records on stdout.

`streams` opens one stream, then all others, and follows them to their ends. `closed` keeps a number of clients busy,
each sending its next request when its last has ended. `open` sends at a fixed rate whatever becomes of what it sent.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import asdict, dataclass, field
from typing import Any

import uvloop

from thranite.bench.http_stream import StreamRecord, Target, completion_body, stream


@dataclass(frozen=True, slots=True)
class StreamOrders:
    """`lone_seconds`: how long the first stream runs alone. `open_seconds`: over which the others are opened."""

    host: str
    port: int
    model: str
    count: int
    tokens: int
    lone_seconds: float
    open_seconds: float


@dataclass(frozen=True, slots=True)
class LoadOrders:
    """`clients` of a closed loop, or `rate` of an open one, for `seconds` from `begin` (monotonic).

    Sizes are drawn uniformly between the two bounds.
    """

    host: str
    port: int
    model: str
    seed: int
    begin: float
    seconds: float
    clients: int = 0
    rate: float = 0.0
    prompt_tokens: tuple[int, int] = (8, 8)
    output_tokens: tuple[int, int] = (20, 20)
    headers: list[tuple[str, str]] = field(default_factory=list)


async def follow_streams(orders: StreamOrders) -> list[StreamRecord]:
    target = Target(orders.host, orders.port)

    async def one(number: int) -> StreamRecord:
        if number > 0:
            await asyncio.sleep(orders.lone_seconds + orders.open_seconds * number / orders.count)
        prompt = [1 + number % 1000] * 4
        return await stream(target, completion_body(orders.model, prompt, orders.tokens))

    return await asyncio.gather(*(one(number) for number in range(orders.count)))


def _bodies(orders: LoadOrders) -> Callable[[], bytes]:
    draw = random.Random(orders.seed)

    def make() -> bytes:
        prompt = [draw.randint(1, 1000) for _ in range(draw.randint(*orders.prompt_tokens))]
        return completion_body(orders.model, prompt, draw.randint(*orders.output_tokens))

    return make


async def closed_loop(orders: LoadOrders) -> list[StreamRecord]:
    target, make, records = Target(orders.host, orders.port), _bodies(orders), []
    end = orders.begin + orders.seconds

    async def client() -> None:
        while time.monotonic() < end:
            records.append(await stream(target, make(), headers=orders.headers))

    await asyncio.sleep(max(orders.begin - time.monotonic(), 0.0))
    await asyncio.gather(*(client() for _ in range(orders.clients)))
    return records


async def open_loop(orders: LoadOrders) -> list[StreamRecord]:
    target, make = Target(orders.host, orders.port), _bodies(orders)
    tasks = [asyncio.create_task(stream(target, make(), headers=orders.headers)) async for _ in _beats(orders)]
    return await asyncio.gather(*tasks)


async def _beats(orders: LoadOrders) -> AsyncIterator[None]:
    """At the rate, as well as the event loop keeps up: what is late follows at once."""
    for number in range(int(orders.rate * orders.seconds)):
        wait = orders.begin + number / orders.rate - time.monotonic()
        if wait > 0:
            await asyncio.sleep(wait)
        elif number % 50 == 0:
            await asyncio.sleep(0)  # let answers in, however late the requests are
        yield


def main() -> int:
    orders = json.load(sys.stdin)
    work: Coroutine[Any, Any, list[StreamRecord]]
    match sys.argv[1]:
        case "streams":
            work = follow_streams(StreamOrders(**orders))
        case "closed":
            work = closed_loop(LoadOrders(**orders))
        case "open":
            work = open_loop(LoadOrders(**orders))
        case kind:
            raise SystemExit(f"no such kind: {kind}")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        json.dump([asdict(record) for record in runner.run(work)], sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
