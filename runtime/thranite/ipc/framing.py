"""Length-prefixed frames on a byte stream: a little-endian uint32 length, then that many bytes of msgpack."""

from __future__ import annotations

import struct

from thranite.errors import ThraniteError

MAX_FRAME = 64 * 2**20  # bytes; prompt logprobs of a 128k prompt with 20 alternatives are about 40 MB
HEADER = struct.Struct("<I")


class FrameError(ThraniteError):
    """The peer broke the framing, or a frame exceeds its limit."""


def frame(payload: bytes, limit: int = MAX_FRAME) -> bytes:
    """`payload` with its header. Raises FrameError above `limit`."""
    if len(payload) > limit:
        raise FrameError(f"a frame of {len(payload)} bytes exceeds the limit of {limit}")
    return HEADER.pack(len(payload)) + payload


class FrameReader:
    """Turns chunks of a stream, cut anywhere, into payloads."""

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, chunk: bytes | memoryview) -> list[bytes]:
        """The payloads that `chunk` completes. Raises FrameError on a length above the limit."""
        self._buffer += chunk
        payloads = []
        start = 0
        while len(self._buffer) - start >= HEADER.size:
            (length,) = HEADER.unpack_from(self._buffer, start)
            if length > self._limit:
                raise FrameError(f"the peer announces a frame of {length} bytes; the limit is {self._limit}")
            end = start + HEADER.size + length
            if len(self._buffer) < end:
                break
            payloads.append(bytes(self._buffer[start + HEADER.size : end]))
            start = end
        del self._buffer[:start]
        return payloads

    @property
    def pending(self) -> int:
        """Bytes of a frame that has not come whole."""
        return len(self._buffer)
