"""Writes one response: a JSON body, or a stream of server-sent events; and errors in whichever form still fits."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from starlette.types import Send

from thranite.server.errors import ErrorAnswer

DONE = b"data: [DONE]\n\n"
_STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # nginx and ingresses made of it would collect events
}
_encoder = msgspec.json.Encoder()


def event(value: msgspec.Struct) -> bytes:
    return b"data: " + _encoder.encode(value) + b"\n\n"


def named_event(name: str, value: object) -> bytes:
    """With the event's name on a line of its own, as Anthropic's and the Responses API have it."""
    return b"event: " + name.encode() + b"\ndata: " + _encoder.encode(value) + b"\n\n"


class Reply:
    """The answer to one HTTP request. Every `write` is one ASGI message, hence one write to the socket.

    A stream's header leaves with its first event, or with its first token where that says nothing yet: what fails
    before (a deadline that passes in the queue, an engine that ends) still gets the status that it should have.
    `send_body` takes what follows the header, which is a token's whole way of many: the middleware that `send` leads
    through has seen then what it looks for.
    """

    def __init__(self, send: Send, send_body: Send) -> None:
        self._send, self._send_body = send, send_body
        self._started = False
        self._held = b""
        self.finished = False

    async def json(self, value: msgspec.Struct) -> None:
        await self._whole(200, _encoder.encode(value), {})

    def hold(self, events: bytes) -> None:
        """They leave with the next write."""
        self._held += events

    async def flush(self) -> None:
        """Write what is held; the header, if it has not left yet, though nothing is."""
        if self._held or not self._started:
            await self.write(b"")

    async def write(self, events: bytes, last: bool = False) -> None:
        if not self._started:
            await self._start(200, _STREAM_HEADERS)
        await self._body(self._held + events, last)
        self._held = b""

    async def _body(self, body: bytes, last: bool) -> None:
        self.finished = last
        await self._send_body({"type": "http.response.body", "body": body, "more_body": not last})

    async def fail(self, answer: ErrorAnswer) -> None:
        """An error response, or the last event of a stream that has begun."""
        if self.finished:
            return
        if self._started:
            await self.write(self._error_event(answer), last=True)
        else:
            await self._whole(answer.status, self._error_body(answer), answer.headers)

    def _error_event(self, answer: ErrorAnswer) -> bytes:
        return event(answer.body)

    def _error_body(self, answer: ErrorAnswer) -> bytes:
        return answer.json()

    async def _whole(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        json_headers = {"content-type": "application/json", "content-length": str(len(body))}
        await self._start(status, {**json_headers, **headers})
        await self._body(body, last=True)

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self._started = True
        pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})
