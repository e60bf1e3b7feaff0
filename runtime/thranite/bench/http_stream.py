"""A client that reads one streamed completion on a connection of its own, and remembers when each event came.

It does little else, so that one process can follow thousands of streams: events are found, counted and timed, and only
the last ones are read.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

_SEPARATOR = b"\n\n"
_NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')
_DONE = b"data: [DONE]"
_ERROR = b'data: {"error"'
KEPT_ERROR = 300  # characters


@dataclass(frozen=True, slots=True)
class Target:
    host: str
    port: int


@dataclass(slots=True)
class StreamRecord:
    """One request as its client saw it. Times are of `time.monotonic`, which all processes of a machine share.

    `arrivals`: of events with a choice. `ended`: the stream came to its [DONE], or to the client's own abort.
    """

    started: float
    arrivals: list[float] = field(default_factory=list)
    status: int = 0
    completion_tokens: int | None = None
    retry_after: float | None = None
    ended: bool = False
    error: str | None = None

    @property
    def ok(self) -> bool:
        return self.ended and self.error is None


class _StreamReader(asyncio.Protocol):
    """Parses the response and fills `record`; `done` is set at its end."""

    def __init__(
        self, request: bytes, record: StreamRecord, abort_after: int | None, on_event: Callable[[bytes], None] | None
    ) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request, self._record = request, record
        self._abort_after, self._on_event = abort_after, on_event
        import httptools  # here: the offline benchmarks share its command and need no HTTP client

        self._parser, self._parse_error = httptools.HttpResponseParser(self), httptools.HttpParserError
        self._rest = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def connection_lost(self, error: Exception | None) -> None:
        if not self._record.ended:
            self._fail(f"the connection was lost: {error}")
        self._finish()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except self._parse_error as error:
            self._fail(f"no HTTP: {error}")
            self._finish()

    # --- the parser's callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"retry-after":
            self._record.retry_after = float(value)

    def on_headers_complete(self) -> None:
        self._record.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if self._record.status != 200:
            self._rest += body
            return
        text = (self._rest + body if self._rest else body).replace(b"\r\n", b"\n")
        *events, self._rest = text.split(_SEPARATOR)
        now = time.monotonic()
        for event in events:
            self._take(event, now)

    def on_message_complete(self) -> None:
        if self._record.status != 200:
            self._fail(self._rest.decode(errors="replace"))
        elif not self._record.ended:
            self._fail("the stream ended without [DONE]")
        self._finish()

    # --- inside

    def _take(self, event: bytes, now: float) -> None:
        if event == _DONE:
            self._record.ended = True
        elif event.startswith(_ERROR):
            self._fail(event.decode(errors="replace"))
        elif _NO_CHOICES.search(event):
            self._record.completion_tokens = json.loads(event[6:])["usage"]["completion_tokens"]
        else:
            self._record.arrivals.append(now)
            if self._on_event is not None:
                self._on_event(event)
            if len(self._record.arrivals) == self._abort_after:
                self._record.ended = True
                self._finish()

    def _fail(self, error: str) -> None:
        if self._record.error is None:
            self._record.error = error[:KEPT_ERROR]

    def _finish(self) -> None:
        if self._transport is not None:
            self._transport.close()
        if not self.done.done():
            self.done.set_result(None)


async def stream(
    target: Target,
    body: bytes,
    *,
    path: str = "/v1/completions",
    headers: Sequence[tuple[str, str]] = (),
    abort_after: int | None = None,
    on_event: Callable[[bytes], None] | None = None,
) -> StreamRecord:
    """Send one request and read its stream to the end; after `abort_after` events hang up. Errors are the record's."""
    record = StreamRecord(time.monotonic())
    request = encode_request(target, path, body, headers)
    try:
        _, reader = await asyncio.get_running_loop().create_connection(
            lambda: _StreamReader(request, record, abort_after, on_event), target.host, target.port
        )
    except OSError as error:
        record.error = f"no connection: {error}"
        return record
    await reader.done
    return record


def encode_request(target: Target, path: str, body: bytes, headers: Sequence[tuple[str, str]] = ()) -> bytes:
    extra = "".join(f"{name}: {value}\r\n" for name, value in headers)
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {target.host}:{target.port}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n{extra}\r\n"
    )
    return head.encode() + body


def completion_body(model: str, prompt: Sequence[int], max_tokens: int, **fields: Any) -> bytes:
    """A streamed completion of token ids."""
    request = {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        **fields,
    }
    return json.dumps(request).encode()
