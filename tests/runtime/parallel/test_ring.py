"""The ring: every frame to every reader, once, whole and in order, whatever their pace."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from thranite.parallel.ring import DATA, RingReader, RingWriter, create_memory
from thranite.parallel.wire import FrameError


def never_waits() -> None:
    raise AssertionError("the writer waits")


def goes_on() -> None:
    return


@contextmanager
def ring(
    readers: int, capacity: int = 4096, spin_seconds: float = 0.0
) -> Iterator[tuple[RingWriter, list[RingReader]]]:
    memory = create_memory(readers, capacity)
    pipes = [os.pipe() for _ in range(readers)]
    for _, writing in pipes:
        os.set_blocking(writing, False)
    writer = RingWriter(memory, [writing for _, writing in pipes])
    ends = [RingReader(memory, index, reading, spin_seconds) for index, (reading, _) in enumerate(pipes)]
    try:
        yield writer, ends
    finally:
        writer.close()
        for end in ends:
            end.close()
        for fd in (memory, *(fd for pipe in pipes for fd in pipe)):
            os.close(fd)


def test_frames_of_any_length_reach_all_readers_in_order() -> None:
    source = random.Random(1)
    frames = [source.randbytes(source.choice([0, 1, 7, 8, 100, 1023, 1024, 1025, 4096, 30_000])) for _ in range(300)]
    with ring(3) as (writer, readers):
        got: list[list[bytes]] = [[] for _ in readers]

        def read(index: int) -> None:
            pace = random.Random(index)
            for _ in frames:
                frame = readers[index].take(10.0)
                assert frame is not None
                got[index].append(frame)
                readers[index].handled()
                if pace.random() < 0.02:
                    time.sleep(0.002)

        threads = [threading.Thread(target=read, args=(index,)) for index in range(3)]
        for thread in threads:
            thread.start()
        for frame in frames:
            writer.publish(frame, goes_on)
        for thread in threads:
            thread.join(20)
        assert got == [frames] * 3
        assert [writer.behind(index) for index in range(3)] == [0, 0, 0]


def test_the_writer_waits_for_the_slowest_and_gives_up_when_told() -> None:
    with ring(2, capacity=1024) as (writer, readers):
        for _ in range(3):
            writer.publish(b"x" * 200, never_waits)
            assert readers[0].take(1.0) == b"x" * 200
        assert [writer.behind(index) for index in range(2)] == [3, 3]  # taken is not handled
        readers[0].handled()
        assert writer.behind(0) == 0
        calls = []

        def lost() -> None:
            calls.append(1)
            if len(calls) == 3:
                raise ConnectionError("rank 2 is lost")

        writer.publish(b"x" * 200, never_waits)
        with pytest.raises(ConnectionError):
            writer.publish(b"x" * 200, lost)


@pytest.mark.parametrize("spin_seconds", [0.0, 0.05])
def test_a_sleeping_reader_is_woken(spin_seconds: float) -> None:
    with ring(1, spin_seconds=spin_seconds) as (writer, [reader]):
        assert reader.take(0.03) is None
        waits = []
        for delay in (0.0, 0.03, 0.1):
            timer = threading.Timer(delay, lambda: writer.publish(repr(time.monotonic()).encode(), never_waits))
            timer.start()
            frame = reader.take(5.0)
            assert frame is not None
            waits.append(time.monotonic() - float(frame))
            timer.join()
        assert max(waits) < 1.0


def test_signs_of_life() -> None:
    with ring(2) as (writer, readers):
        readers[1].beat()
        readers[1].beat()
        assert [writer.beats(index) for index in range(2)] == [0, 2]


def test_damaged_bytes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thranite.parallel.ring.DAMAGED_SECONDS", 0.05)
    with ring(1) as (writer, [reader]):
        writer.publish(b"a plan", never_waits)
        memory = writer._memory
        memory._data[25] ^= 1
        with pytest.raises(FrameError, match="damaged"):
            reader.take(1.0)
    foreign = os.memfd_create("foreign")
    os.ftruncate(foreign, DATA + 1024)
    with pytest.raises(FrameError, match="not a ring"):
        RingWriter(foreign, [])
    os.close(foreign)
