"""A broadcast ring in shared memory: rank 0 writes frames, each of the other ranks reads all of them in order.

    header   magic, version, readers, bytes of data
    written  bytes ever written; rank 0's
    readers  one cache line each: bytes read, frames handled, beats, whether it sleeps; the reader's own
    data     pieces: (bytes, CRC-32, bytes of the whole frame, offset in it, number of the frame), payload, to 8 bytes

One writer for each word, and every word is aligned, so it is read whole. The CRC settles what the processor's memory
model leaves open: a piece whose number is visible before its bytes are is read again. A frame longer than a quarter of
the ring travels in several pieces. The memory has no name (memfd), so nothing is left behind and no size limit of
/dev/shm counts.
"""

from __future__ import annotations

import mmap
import os
import select
import struct
import tempfile
import time
import zlib
from collections.abc import Callable

from thranite.parallel.wire import FrameError

MAGIC, VERSION = 0x7468_7261, 1
LINE = 64
DATA = 4096  # where the data begins; lines of up to 61 readers stand before it
CAPACITY = 8 << 20
_HEADER = struct.Struct("<IIII")
_PIECE = struct.Struct("<IIIIQ")
READ, HANDLED, BEATS, SLEEPS = range(4)  # words of a reader's line
POLL_SECONDS = 0.02  # a reader that sleeps looks so often even if its wake-up was lost
WRITER_PAUSE = 0.0002
DAMAGED_SECONDS = 1.0


def create_memory(readers: int, capacity: int = CAPACITY) -> int:
    """A file descriptor of a fresh ring."""
    if not 1 <= readers <= DATA // LINE - 2:
        raise ValueError(f"a ring for {readers} readers")
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("thranite-ring")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, DATA + capacity)
    os.pwrite(fd, _HEADER.pack(MAGIC, VERSION, readers, capacity), 0)
    return fd


class _Memory:
    """The mapped ring."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, 0)
        magic, version, self.readers, self.capacity = _HEADER.unpack_from(self._map)
        if (magic, version) != (MAGIC, VERSION):
            raise FrameError(f"not a ring of version {VERSION}: {magic:#x}, {version}")
        view = memoryview(self._map)
        self._words = view[:DATA].cast("Q")
        self._data = view[DATA:]
        self._views = (self._words, self._data, view)

    @property
    def written(self) -> int:
        return self._words[LINE // 8]

    @written.setter
    def written(self, value: int) -> None:
        self._words[LINE // 8] = value

    def word(self, reader: int, which: int) -> int:
        return self._words[(2 + reader) * LINE // 8 + which]

    def set_word(self, reader: int, which: int, value: int) -> None:
        self._words[(2 + reader) * LINE // 8 + which] = value

    def put(self, position: int, data: bytes) -> None:
        at = position % self.capacity
        first = min(len(data), self.capacity - at)
        self._data[at : at + first] = data[:first]
        self._data[: len(data) - first] = data[first:]

    def get(self, position: int, count: int) -> bytes:
        at = position % self.capacity
        first = min(count, self.capacity - at)
        return bytes(self._data[at : at + first]) + bytes(self._data[: count - first])

    def close(self) -> None:
        for view in self._views:
            view.release()
        self._map.close()


class RingWriter:
    """Rank 0's end. `wake_fds[r]`: the writing end of reader r's pipe, not blocking."""

    def __init__(self, fd: int, wake_fds: list[int]) -> None:
        self._memory = _Memory(fd)
        self._wake_fds = wake_fds
        self.frames = 0

    def publish(self, frame: bytes, waiting: Callable[[], None]) -> None:
        """Write a frame. `waiting` is called while readers are too slow; what it raises ends the wait."""
        largest = self._memory.capacity // 4
        for offset in range(0, max(len(frame), 1), largest):
            self._write(frame[offset : offset + largest], len(frame), offset, waiting)
        self.frames += 1

    def _write(self, piece: bytes, total: int, offset: int, waiting: Callable[[], None]) -> None:
        memory = self._memory
        size = _padded(len(piece))
        end = memory.written + size
        while end - min(memory.word(reader, READ) for reader in range(memory.readers)) > memory.capacity:
            waiting()
            time.sleep(WRITER_PAUSE)
        head = _PIECE.pack(len(piece), zlib.crc32(piece), total, offset, self.frames)
        memory.put(memory.written, head + piece)
        memory.written = end
        for reader, fd in enumerate(self._wake_fds):
            if memory.word(reader, SLEEPS):
                _wake(fd)

    def behind(self, reader: int) -> int:
        """Frames that the reader has not handled yet."""
        return max(self.frames - self._memory.word(reader, HANDLED), 0)

    def beats(self, reader: int) -> int:
        """Grows while the reader's process runs."""
        return self._memory.word(reader, BEATS)

    def close(self) -> None:
        self._memory.close()


class RingReader:
    """One rank's end. `wake_fd`: the reading end of its pipe. `spin_seconds`: looked for a frame before it sleeps."""

    def __init__(self, fd: int, reader: int, wake_fd: int, spin_seconds: float = 0.0) -> None:
        self._memory = _Memory(fd)
        self._reader, self._wake_fd, self._spin_seconds = reader, wake_fd, spin_seconds
        self._position = self._memory.word(reader, READ)
        self._number = self._memory.word(reader, HANDLED)
        os.set_blocking(wake_fd, False)
        self._wakened = select.poll()  # a process with many files passes on numbers that select() does not take
        self._wakened.register(wake_fd, select.POLLIN)

    def take(self, timeout: float) -> bytes | None:
        """The next frame, or None if none begins within `timeout` seconds."""
        if not self._wait(timeout):
            return None
        parts = [self._piece(0)]
        total, _ = self._sizes
        length = len(parts[0])
        while length < total:
            while not self._wait(POLL_SECONDS):
                continue
            parts.append(self._piece(length))
            length += len(parts[-1])
        self._number += 1
        return b"".join(parts)

    def handled(self) -> None:
        """The frame taken last has been acted on."""
        self._memory.set_word(self._reader, HANDLED, self._number)

    def beat(self) -> None:
        """Callable from another thread."""
        self._memory.set_word(self._reader, BEATS, self._memory.word(self._reader, BEATS) + 1)

    def close(self) -> None:
        self._memory.close()

    def _piece(self, offset: int) -> bytes:
        deadline = time.monotonic() + DAMAGED_SECONDS
        while True:
            length, crc, total, at, number = _PIECE.unpack(self._memory.get(self._position, _PIECE.size))
            if (at, number) == (offset, self._number) and length <= self._memory.capacity // 4:
                piece = self._memory.get(self._position + _PIECE.size, length)
                if zlib.crc32(piece) == crc:
                    break
            if time.monotonic() > deadline:
                raise FrameError(f"frame {self._number} of the ring is damaged at byte {offset}")
            time.sleep(0)
        self._sizes = (total, length)
        self._position += _padded(length)
        self._memory.set_word(self._reader, READ, self._position)
        return piece

    def _wait(self, timeout: float) -> bool:
        spun = time.monotonic() + min(self._spin_seconds, timeout)
        deadline = time.monotonic() + timeout
        while self._memory.written == self._position:
            now = time.monotonic()
            if now < spun:
                continue
            if now >= deadline:
                return False
            self._sleep(min(deadline - now, POLL_SECONDS))
        return True

    def _sleep(self, seconds: float) -> None:
        self._memory.set_word(self._reader, SLEEPS, 1)
        if self._memory.written == self._position and self._wakened.poll(seconds * 1000):
            os.read(self._wake_fd, 4096)
        self._memory.set_word(self._reader, SLEEPS, 0)


def _padded(length: int) -> int:
    return -(-(_PIECE.size + length) // 8) * 8


def _wake(fd: int) -> None:
    try:
        os.write(fd, b"\0")
    except BlockingIOError:
        return  # wake-ups enough are waiting already
