"""The least that a server can do: the same bytes to every stream at every tick. `serve_bare.py FD TICK EVENT_BYTES`.

What `serve_streams.py` holds thranite's server against: uvicorn, starlette and uvloop as they are, no engine, no text.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator

import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route


class Ticker:
    """Wakes everybody who waits, every `seconds`, without drift."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._next = asyncio.Event()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        at = loop.time()
        while True:
            at += self._seconds
            await asyncio.sleep(at - loop.time())
            waiting, self._next = self._next, asyncio.Event()
            waiting.set()

    async def tick(self) -> None:
        await self._next.wait()


def build(ticker: Ticker, event: bytes) -> Starlette:
    async def events(count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            await ticker.tick()
            yield event
        yield b"data: [DONE]\n\n"

    async def completions(request: Request) -> StreamingResponse:
        body = await request.json()
        return StreamingResponse(events(body["max_tokens"]), media_type="text/event-stream")

    return Starlette(routes=[Route("/v1/completions", completions, methods=["POST"])])


async def serve(listener: socket.socket, tick: float, event_bytes: int) -> None:
    ticker = Ticker(tick)
    event = b'data: {"choices":["' + b"x" * (event_bytes - 24) + b'"]}\n\n'
    ticking = asyncio.create_task(ticker.run())
    config = uvicorn.Config(build(ticker, event), log_level="warning", access_log=False, lifespan="off", backlog=2048)
    await uvicorn.Server(config).serve([listener])
    ticking.cancel()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(socket.socket(fileno=int(sys.argv[1])), float(sys.argv[2]), int(sys.argv[3])))
