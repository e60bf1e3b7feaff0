"""One GET over a connection of its own. Thousands of scrapes every few seconds need no more of HTTP, and a whole client
costs three times as much.

The server is asked to close the connection after its answer, as HTTP/1.1 has it, and the end of the connection is
waited for. Whether the answer is whole is then told by Content-Length or by its chunks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import cast

MAX_ANSWER = 1 << 20  # bytes


class BadAnswer(Exception):
    """Not a whole answer with status 200."""


async def get(address: str, port: int, path: str) -> bytes:
    """The body. `address`: an IP. Raises OSError, BadAnswer; sets no time limit."""
    loop = asyncio.get_running_loop()
    host = f"[{address}]" if ":" in address else address
    answer: asyncio.Future[bytes] = loop.create_future()
    request = (
        f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUser-Agent: thranite-operator\r\n"
        "Accept: text/plain\r\nConnection: close\r\n\r\n"
    )
    transport, _ = await loop.create_connection(lambda: _Exchange(request.encode(), answer), address, port)
    try:
        return body_of(await answer)
    finally:
        transport.abort()


class _Exchange(asyncio.Protocol):
    def __init__(self, request: bytes, answer: asyncio.Future[bytes]) -> None:
        self._request = request
        self._answer = answer
        self._data = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.WriteTransport, transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        self._data += data
        if len(self._data) > MAX_ANSWER:
            self._fail(BadAnswer(f"the answer has more than {MAX_ANSWER} bytes"))

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None:
            self._fail(error)
        elif not self._answer.done():
            self._answer.set_result(bytes(self._data))

    def _fail(self, error: Exception) -> None:
        if not self._answer.done():
            self._answer.set_exception(error)


def body_of(answer: bytes) -> bytes:
    """Raises BadAnswer."""
    head, end, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    words = status.split(maxsplit=2)
    if not end or len(words) < 2 or not words[0].startswith(b"HTTP/1."):
        raise BadAnswer("the connection ended within the answer's head" if answer else "the connection ended at once")
    if words[1] != b"200":
        raise BadAnswer(f"HTTP {words[1].decode(errors='replace')}")
    pairs = (line.partition(b":") for line in lines)
    fields = {name.strip().lower(): value.strip().lower() for name, _, value in pairs}
    return _whole(fields, body)


def _whole(fields: Mapping[bytes, bytes], body: bytes) -> bytes:
    if fields.get(b"content-encoding", b"identity") != b"identity":
        raise BadAnswer("the answer is encoded, which was not asked for")
    coding = fields.get(b"transfer-encoding")
    if coding is not None:
        if coding != b"chunked":
            raise BadAnswer(f"a transfer encoding {coding.decode(errors='replace')}")
        return _joined(body)
    length = fields.get(b"content-length")
    if length is not None and length != str(len(body)).encode():
        raise BadAnswer(f"{len(body)} bytes of {length.decode(errors='replace')}")
    return body


def _joined(chunks: bytes) -> bytes:
    body = bytearray()
    rest = chunks
    while True:
        line, _, rest = rest.partition(b"\r\n")
        try:
            size = int(line.partition(b";")[0], 16)
        except ValueError:
            raise BadAnswer("the connection ended within the answer's chunks") from None
        if size == 0:
            return bytes(body)
        if size < 0 or rest[size : size + 2] != b"\r\n":
            raise BadAnswer("the connection ended within the answer's chunks")
        body += rest[:size]
        rest = rest[size + 2 :]
