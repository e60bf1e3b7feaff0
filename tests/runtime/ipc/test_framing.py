"""Frames survive any cut of the stream, and their limits hold."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thranite.ipc.framing import FrameError, FrameReader, frame


@settings(deadline=None)
@given(st.lists(st.binary(max_size=50), max_size=8), st.lists(st.integers(0, 500), max_size=10))
def test_any_cut_of_the_stream_gives_the_same_payloads(payloads: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(frame(payload) for payload in payloads)
    edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    reader, got = FrameReader(), []
    for start, end in pairwise(edges):
        got += reader.feed(stream[start:end])
    assert got == payloads
    assert reader.pending == 0


def test_limits() -> None:
    with pytest.raises(FrameError, match="exceeds the limit of 10"):
        frame(b"x" * 11, limit=10)
    reader = FrameReader(limit=10)
    with pytest.raises(FrameError, match="announces a frame of 11"):
        reader.feed(frame(b"x" * 11)[:4])
