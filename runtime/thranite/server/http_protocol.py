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


class GuardedHttp(HttpToolsProtocol):
    """HTTP/1.1 for clients that may be slow or hostile. `client_timeout` is set by `guarded`."""

    client_timeout = 30.0

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(cast("Transport", transport))
        self._reader = SlowReader(self.transport, self.loop, self.client_timeout)
        self._head_bytes = 0
        self._head_timer: TimerHandle | None = None
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._reader.resumed()
        self._end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head_timer is None or self.transport.is_closing():
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            self.transport.write(TOO_LARGE)
            self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begin_head()

    def on_headers_complete(self) -> None:
        self._end_head()
        super().on_headers_complete()

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

    def _head_is_late(self) -> None:
        logger.info("a client that sent no request within %.0f s is dropped", self.client_timeout)
        self.transport.abort()


def guarded(protocol: type[Any], seconds: float) -> type[Any]:
    """`protocol` with its clients' time: uvicorn takes classes, not instances."""
    return type(protocol.__name__, (protocol,), {"client_timeout": seconds})
