"""What both generation endpoints share: read the body, answer while the client is there, turn errors into answers."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from thranite.errors import InvalidRequest, ThraniteError
from thranite.server.caller import Caller
from thranite.server.directory import ModelDirectory
from thranite.server.errors import BodyTooLarge, describe
from thranite.server.gate import SEND_BODY
from thranite.server.reply import Reply
from thranite.server.request_id import current_request_id

logger = logging.getLogger(__name__)


class GenerationEndpoint(ABC):
    """An ASGI application for one POST route."""

    def __init__(self, models: ModelDirectory) -> None:
        self._models = models

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply = self.reply(send, scope.get(SEND_BODY, send))
        try:
            body = await _read_body(Request(scope, receive), self._models.settings.max_body_bytes)
            caller = Caller.of(scope)
        except ClientDisconnect:
            return
        except InvalidRequest as error:
            await reply.fail(describe(error))
            return
        await while_connected(receive, self._answer(body, reply, caller))

    async def _answer(self, body: bytes, reply: Reply, caller: Caller) -> None:
        try:
            await self.answer(body, reply, caller)
        except ThraniteError as error:
            await reply.fail(describe(error))
        except Exception as error:
            logger.exception("request %s failed", current_request_id.get())
            await reply.fail(describe(error))

    def reply(self, send: Send, send_body: Send) -> Reply:
        """In the shape of this endpoint's errors."""
        return Reply(send, send_body)

    @abstractmethod
    async def answer(self, body: bytes, reply: Reply, caller: Caller) -> None:
        """Serve one request. Cancelled when the client goes; raised errors become the answer."""


async def _read_body(request: Request, limit: int) -> bytes:
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise BodyTooLarge(limit)
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise BodyTooLarge(limit)
        chunks.append(chunk)
    return b"".join(chunks)


async def while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Run `work` to its end, or cancel it (and wait for its clean-up) as soon as the client disconnects."""
    worker = asyncio.ensure_future(work)
    listener = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({worker, listener}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        worker.cancel()
        listener.cancel()
        await asyncio.gather(worker, listener, return_exceptions=True)
    if not worker.cancelled():
        worker.result()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
