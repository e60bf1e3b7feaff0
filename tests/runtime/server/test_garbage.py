"""What a request leaves behind is freed as it ends, not by a collection that may come minutes later."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec
import pytest
from starlette.types import ASGIApp, Message

from tests.support.engine_thread import engine_thread
from tests.support.fake_engine import TOKENIZER
from tests.support.fake_stepping_engine import EXPIRE, FakeEngine
from thranite.ipc.client import SocketEngineClient
from thranite.server.app import build_app
from thranite.server.settings import ServerSettings

Scene = Callable[[ASGIApp], Awaitable[int]]

MODEL = "tiny"
USER = [{"role": "user", "content": "hi"}]
ENDPOINTS: list[tuple[str, dict[str, Any], str]] = [  # path, body, the name of max_tokens there
    ("/v1/chat/completions", {"messages": USER}, "max_tokens"),
    ("/v1/responses", {"input": "hi"}, "max_output_tokens"),
    ("/v1/messages", {"messages": USER}, "max_tokens"),
]
PLAIN = {"model": MODEL, "prompt": [5, 6], "max_tokens": 4}
ENDLESS = {**PLAIN, "max_tokens": 2000, "return_token_ids": True}


class Call:
    """One request, by hand: an HTTP client would leave garbage of its own."""

    def __init__(self, body: dict[str, Any], hang_up_after: int | None = None, path: str = "/v1/completions") -> None:
        self._body, self._path = msgspec.json.encode(body), path
        self._hang_up_after = hang_up_after
        self._asked = False
        self._gone = asyncio.Event()
        self.status = 0
        self.parts = 0

    async def run(self, app: ASGIApp) -> None:
        scope = {"type": "http", "method": "POST", "path": self._path, "headers": [], "query_string": b""}
        await app(scope, self._receive, self._send)

    async def _receive(self) -> Message:
        if self._asked:
            await self._gone.wait()
            return {"type": "http.disconnect"}
        self._asked = True
        return {"type": "http.request", "body": self._body, "more_body": False}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.parts += 1
        if self.parts == self._hang_up_after:
            self._gone.set()


async def answered(app: ASGIApp) -> int:
    call = Call({**PLAIN, "stream": True, "n": 2})
    await call.run(app)
    return call.status


async def expired(app: ASGIApp) -> int:
    call = Call({**ENDLESS, "prompt": [EXPIRE], "stream": True})
    await call.run(app)
    return call.status


async def expired_unstreamed(app: ASGIApp) -> int:
    call = Call({**ENDLESS, "prompt": [EXPIRE]})
    await call.run(app)
    return call.status


async def left(app: ASGIApp) -> int:
    call = Call({**ENDLESS, "stream": True}, hang_up_after=3)
    await call.run(app)
    return call.status


async def invalid(app: ASGIApp) -> int:
    call = Call({**PLAIN, "temperature": -1})
    await call.run(app)
    return call.status


async def refused(app: ASGIApp) -> int:
    """Where another one takes the only place."""
    other = Call({**ENDLESS, "stream": True}, hang_up_after=200)
    running = asyncio.create_task(other.run(app))
    while not other.parts:
        await asyncio.sleep(0.001)
    call = Call(PLAIN)
    await call.run(app)
    await running
    return call.status


def of_endpoint(path: str, body: dict[str, Any], hang_up_after: int | None = None) -> Scene:
    async def scene(app: ASGIApp) -> int:
        call = Call({"model": MODEL, **body}, hang_up_after, path)
        await call.run(app)
        return call.status

    return scene


def of_every_endpoint() -> Iterator[Any]:
    """Whole, streamed, and left in the middle."""
    for path, body, limit in ENDPOINTS:
        yield pytest.param(of_endpoint(path, {**body, limit: 20}), 200, id=path)
        yield pytest.param(of_endpoint(path, {**body, limit: 20, "stream": True}), 200, id=f"{path} streamed")
        endless = {**body, limit: 1900, "stream": True}
        yield pytest.param(of_endpoint(path, endless, hang_up_after=5), 200, id=f"{path} left")


@pytest.mark.parametrize(
    ("scene", "status"),
    [
        (answered, 200),
        (expired, 200),
        (expired_unstreamed, 504),
        (left, 200),
        (invalid, 400),
        (refused, 429),
        *of_every_endpoint(),
    ],
)
def test_no_request_waits_for_the_collector(scene: Scene, status: int) -> None:
    async def run(path: Any) -> Counter[str]:
        client = await SocketEngineClient.connect(path)
        app = build_app(client, TOKENIZER, ServerSettings(served_model_names=(MODEL,)))
        async with app.router.lifespan_context(app):
            assert await scene(app) == status
            gc.collect()
            gc.disable()
            gc.set_debug(gc.DEBUG_SAVEALL)
            try:
                for _ in range(3):
                    await scene(app)
                await asyncio.sleep(0.01)
                gc.collect()
                found = Counter(type(item).__name__ for item in gc.garbage)
            finally:
                gc.set_debug(0)
                gc.enable()
                gc.garbage.clear()
        await client.close()
        return found

    with engine_thread(FakeEngine(0.001, max_requests=1)) as engine:
        found = asyncio.run(run(engine.path))
    assert not {"EngineRequest", "RequestStream", "Generation", "Reply", "traceback", "frame"} & set(found), found
