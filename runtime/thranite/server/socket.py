"""WebSocket /ws/generate: several requests on one socket; closing it aborts them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect

from thranite.errors import InvalidRequest, ThraniteError
from thranite.server.caller import Caller
from thranite.server.decode import check_request, decode
from thranite.server.directory import ModelDirectory
from thranite.server.errors import describe
from thranite.server.gate import COUNT_REQUESTS
from thranite.server.models import refuse_socket
from thranite.server.plain import run_plain
from thranite.server.wire.plain import Delta, Done, SocketCancel, SocketError, SocketGenerate, SocketMessage

logger = logging.getLogger(__name__)

MAX_REQUESTS = 1024  # open on one socket
SEND_SECONDS = 30.0  # a client that reads nothing for so long is dropped
POLICY_VIOLATION = 1008


class _Named(msgspec.Struct):
    """What an answer needs of a message that cannot be read otherwise."""

    id: str | None = None


class GenerateSocket:
    """The endpoint; each socket is a session of its own."""

    def __init__(self, models: ModelDirectory) -> None:
        self._models = models

    async def serve(self, websocket: WebSocket) -> None:
        try:
            caller = Caller.of(websocket.scope)
        except InvalidRequest as error:
            await refuse_socket(describe(error))(websocket.scope, websocket.receive, websocket.send)
            return
        await websocket.accept()
        session = _Session(websocket, self._models, caller)
        try:
            await session.read()
        except WebSocketDisconnect:
            logger.debug("a socket was closed by its client")
        finally:
            await session.close()


class _Session:
    """One socket's open requests, each a task. Messages are sent whole, one at a time."""

    def __init__(self, websocket: WebSocket, models: ModelDirectory, caller: Caller) -> None:
        self._websocket, self._models, self._caller = websocket, models, caller
        self._open: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # those whose end is not yet sent, too
        self._sending = asyncio.Lock()
        self._count: Callable[[int], None] = websocket.scope.get(COUNT_REQUESTS, lambda _: None)

    async def read(self) -> None:
        """Until the client goes."""
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            body = message.get("text")
            await self._take(message.get("bytes", b"") if body is None else body)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _take(self, body: bytes | str) -> None:
        try:
            message: SocketGenerate | SocketCancel = decode(body, SocketMessage)  # type: ignore[arg-type]
            if isinstance(message, SocketCancel):
                self._cancel(message.id)
                return
            check_request(self._caller.apply(message))
            self._begin(message)
        except InvalidRequest as error:
            await self._send(SocketError(_id_in(body), describe(error).body.error))

    def _begin(self, message: SocketGenerate) -> None:
        if message.id in self._open:
            raise InvalidRequest(f"id {message.id!r} is in use on this socket", "id", "duplicate_id")
        if len(self._tasks) >= MAX_REQUESTS:
            raise InvalidRequest(f"{MAX_REQUESTS} requests are open on this socket", None, "too_many_requests")
        self._count(1)
        task = self._open[message.id] = asyncio.create_task(self._run(message))
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._ended(message.id, done))

    def _ended(self, request_id: str, task: asyncio.Task[None]) -> None:
        if self._open.get(request_id) is task:
            del self._open[request_id]
        self._tasks.discard(task)
        self._count(-1)

    def _cancel(self, request_id: str) -> None:
        """Its id is free at once."""
        task = self._open.pop(request_id, None)
        if task is not None:
            task.cancel()

    async def _run(self, message: SocketGenerate) -> None:
        try:
            async with aclosing(run_plain(message, self._models, message.stream is not False)) as items:
                async for item in items:
                    if isinstance(item, Done):
                        self._open.pop(message.id, None)  # before the client can read of the end
                    await self._send(item)
        except ThraniteError as error:
            self._open.pop(message.id, None)
            await self._send(SocketError(message.id, describe(error).body.error))
        except Exception as error:
            logger.exception("a request failed")
            self._open.pop(message.id, None)
            await self._send(SocketError(message.id, describe(error).body.error))

    async def _send(self, item: Delta | Done | SocketError) -> None:
        try:
            async with asyncio.timeout(SEND_SECONDS), self._sending:
                await self._websocket.send_text(msgspec.json.encode(item).decode())
        except TimeoutError:
            logger.info("a socket's client does not read: it is dropped")
            await self._websocket.close(POLICY_VIOLATION)
        except (WebSocketDisconnect, RuntimeError):
            logger.debug("a message had no reader any more")  # `read` hears of the end and aborts what is open


def _id_in(body: bytes | str) -> str | None:
    """The id that a refused message gives its request, if one can be found."""
    try:
        return decode(body, _Named).id
    except InvalidRequest:
        return None
