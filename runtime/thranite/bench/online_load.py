"""One client process of `thranite bench serve`: `python -m thranite.bench.online_load`, its orders as JSON on stdin.

The load is that of docs/performance.md: Poisson arrivals, prompts of 200 to 800 random token ids, 64 to 256 tokens out,
all drawn from one seed in a fixed order, so that a list of runs is the same load wherever it is repeated.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from thranite.bench.http_stream import StreamRecord, Target, completion_body, stream

TEMPERATURE = 0.6
FIRST_TOKEN_ID = 10
PROMPT_TOKENS, OUTPUT_TOKENS = (200, 800), (64, 256)


@dataclass(frozen=True, slots=True)
class Orders:
    """`rate`: requests a second of this process; inf sends all at once. The clock starts at `begin` (monotonic)."""

    host: str
    port: int
    model: str
    seed: int
    rate: float
    count: int
    vocab: int
    begin: float
    api_key: str | None = None


def arrivals(orders: Orders) -> Iterator[tuple[float, bytes]]:
    """(seconds after the beginning, body) of each request."""
    draw = random.Random(orders.seed)
    at = 0.0
    for _ in range(orders.count):
        if math.isfinite(orders.rate):
            at += draw.expovariate(orders.rate)
        length = draw.randint(*PROMPT_TOKENS)
        prompt = [draw.randint(FIRST_TOKEN_ID, orders.vocab - 1) for _ in range(length)]
        yield at, completion_body(orders.model, prompt, draw.randint(*OUTPUT_TOKENS), temperature=TEMPERATURE)


async def run(orders: Orders) -> list[StreamRecord]:
    """All requests, made before the clock starts."""
    target = Target(orders.host, orders.port)
    headers = [] if orders.api_key is None else [("authorization", f"Bearer {orders.api_key}")]
    requests = list(arrivals(orders))

    async def one(at: float, body: bytes) -> StreamRecord:
        await asyncio.sleep(max(orders.begin + at - time.monotonic(), 0.0))
        return await stream(target, body, headers=headers)

    return await asyncio.gather(*(one(at, body) for at, body in requests))


def main() -> int:
    records = asyncio.run(run(Orders(**json.load(sys.stdin))))
    json.dump([asdict(record) for record in records], sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
