"""Bytes of a frame: little-endian numbers and arrays of int32, written and read in one order. No pickle."""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Sequence

_INT = struct.Struct("<q")
_COUNT = struct.Struct("<I")


class FrameError(Exception):
    """A frame that does not say what its reader expects."""


class FrameWriter:
    """Appends; `done` is the frame."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def pack(self, layout: struct.Struct, *values: float) -> None:
        self._parts.append(layout.pack(*values))

    def integer(self, value: int) -> None:
        self._parts.append(_INT.pack(value))

    def integers(self, values: Sequence[int]) -> None:
        """int32 each."""
        numbers = array("i", values)
        if sys.byteorder == "big":
            numbers.byteswap()
        self.raw(numbers.tobytes())

    def raw(self, data: bytes) -> None:
        self._parts += (_COUNT.pack(len(data)), data)

    def done(self) -> bytes:
        return b"".join(self._parts)


class FrameReader:
    """Reads what a FrameWriter wrote, in its order. Raises FrameError at the frame's end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def pack(self, layout: struct.Struct) -> tuple[float, ...]:
        return layout.unpack(self._take(layout.size))

    def integer(self) -> int:
        (value,) = _INT.unpack(self._take(_INT.size))
        return int(value)

    def integers(self) -> list[int]:
        data = self.raw()
        if len(data) % 4:
            raise FrameError(f"{len(data)} bytes are no array of int32")
        numbers = array("i", data)
        if sys.byteorder == "big":
            numbers.byteswap()
        return numbers.tolist()

    def raw(self) -> bytes:
        (count,) = _COUNT.unpack(self._take(_COUNT.size))
        return self._take(count)

    def end(self) -> None:
        if self._at != len(self._data):
            raise FrameError(f"{len(self._data) - self._at} bytes follow the frame's end")

    def _take(self, count: int) -> bytes:
        data = self._data[self._at : self._at + count]
        if len(data) != count:
            raise FrameError(f"the frame ends {count - len(data)} bytes early")
        self._at += count
        return data
