"""Connections of clients that do not keep up: dropped by the transport, so that nothing waits for them.

A dropped connection is a client that went: its requests are aborted and their KV blocks are free after the step. Times
are watched by timers that run only while a client is late, so a request that is on time costs one timer.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    from asyncio import BaseTransport, TimerHandle, Transport

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 * 1024  # request line and headers
LINGER_SECONDS = 2.0  # for a refused client to read why: closing on what it still sends would take the answer back
TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: 29\r\nconnection: close\r\n\r\nThe request head is too large"
)


class SlowReader:
    """Watches whether a client takes what is sent to it: the transport pauses writing when its buffer is full."""

    def __init__(self, transport: Transport, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._transport, self._loop, self._seconds = transport, loop, seconds
        self._timer: TimerHandle | None = None

    def paused(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._drop)

    def resumed(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _drop(self) -> None:
        logger.info("a client that read nothing for %.0f s is dropped", self._seconds)
        self._transport.abort()  # close() would wait until the client has read what is buffered


class HeadTooLargeError(Exception):
    """Ends the parsing of a head that was refused."""


class GuardedHttp(HttpToolsProtocol):
    """HTTP/1.1 for clients that may be slow or hostile. `client_timeout` is set by `guarded`."""

    client_timeout = 30.0

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(cast("Transport", transport))
        self._reader = SlowReader(self.transport, self.loop, self.client_timeout)
        self._head_bytes = 0  # of a head that comes in parts
        self._heads = 0
        self._head_timer: TimerHandle | None = None
        self._in_body = False
        self._body_timer: TimerHandle | None = None
        self._refused = False
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._reader.resumed()
        self._end_head()
        self._end_body()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        heads = self._heads
        super().data_received(data)
        if self._refused or self.transport.is_closing() or self.transport.get_protocol() is not self:
            return
        if self._in_body:
            self._await_body()
        elif self.timeout_keep_alive_task is None and self.cycle is not None and self.cycle.response_complete:
            self._begin_head()  # blank lines begin no message, and ended the time of an idle connection
        if self._head_timer is not None:
            # Where a head begins, `data` may hold the end of an earlier body, too.
            self._head_bytes = self._parsed_bytes() if heads != self._heads else self._head_bytes + len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._heads += 1
        self._begin_head()

    def on_headers_complete(self) -> None:
        self._end_head()
        if self._parsed_bytes() > MAX_HEAD_BYTES:
            self._refuse_head()
            raise HeadTooLargeError
        super().on_headers_complete()
        self._in_body = True

    def on_message_complete(self) -> None:
        self._end_body()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        if not self._refused:  # a refused head has its answer
            super().send_400_response(msg)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader.paused()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reader.resumed()

    def _begin_head(self) -> None:
        if self._head_timer is None:
            self._head_bytes = 0
            self._head_timer = self.loop.call_later(self.client_timeout, self._head_is_late)

    def _end_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _parsed_bytes(self) -> int:
        """Of the head so far; a header that has not ended is not counted, which is at most one read."""
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _refuse_head(self) -> None:
        """Once: nothing may be written behind the end of the answer."""
        if self._refused:
            return
        self._refused = True
        self._end_head()
        self.transport.write(TOO_LARGE)
        if not self.transport.can_write_eof():
            self.transport.close()
            return
        self.transport.write_eof()
        self._head_timer = self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def _await_body(self) -> None:
        """Every part of a body gets the time anew: a large one may take long."""
        if self._body_timer is not None:
            self._body_timer.cancel()
        self._body_timer = self.loop.call_later(self.client_timeout, self._body_is_late)

    def _end_body(self) -> None:
        self._in_body = False
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None

    def _body_is_late(self) -> None:
        if self.flow.read_paused:  # it waits for us, behind an earlier answer
            self._await_body()
            return
        logger.info("a client that sent nothing of its body for %.0f s is dropped", self.client_timeout)
        self.transport.abort()

    def _head_is_late(self) -> None:
        logger.info("a client that sent no request within %.0f s is dropped", self.client_timeout)
        self.transport.abort()


def guarded(protocol: type[Any], seconds: float) -> type[Any]:
    """`protocol` with its clients' time: uvicorn takes classes, not instances."""
    return type(protocol.__name__, (protocol,), {"client_timeout": seconds})
