"""A step's deltas cross the socket unchanged, in few bytes."""

from __future__ import annotations

from struct import pack

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thranite.ipc.framing import FrameReader
from thranite.ipc.messages import decode_from_engine, encode
from thranite.ipc.outbound import frames_of
from thranite.ipc.step_frame import Row, Step, pack_step, unpack_step
from thranite.packed_logprobs import PackedLogprobs
from thranite.request import FinishReason, SequenceDelta, TokenLogprobs

TOKEN = st.integers(0, 200_000)
LOGPROBS = st.builds(
    TokenLogprobs,
    TOKEN,
    st.floats(max_value=0, allow_nan=False),
    st.integers(1, 1000),
    st.lists(st.tuples(TOKEN, st.floats(max_value=0, allow_nan=False)), max_size=3).map(tuple),
)


@st.composite
def rows(draw: st.DrawFn) -> list[Row]:
    count = draw(st.integers(0, 6))
    result = []
    for handle in range(count):
        tokens = draw(st.lists(TOKEN, max_size=3)) if draw(st.booleans()) else [draw(TOKEN)]
        reason = draw(st.none() | st.sampled_from(FinishReason))
        delta = SequenceDelta(
            request_id=f"r{handle}",
            index=draw(st.integers(0, 3)),
            token_ids=tuple(tokens),
            finish_reason=reason,
            stop_token_id=draw(st.none() | TOKEN) if reason else None,
            logprobs=draw(st.none() | st.lists(LOGPROBS, max_size=2).map(tuple)),
            prompt_logprobs=draw(st.none() | st.lists(st.none() | LOGPROBS, max_size=3).map(tuple)),
            cached_tokens=draw(st.none() | st.integers(0, 100)),
            error=draw(st.none() | st.sampled_from(["", "late", "zu spät"])),
        )
        result.append((handle, delta))
    return result


def through(payload: bytes) -> list[Row]:
    message = decode_from_engine(payload)
    assert isinstance(message, Step)
    return list(unpack_step(message, lambda handle: f"r{handle}"))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows())
def test_round_trip(deltas: list[Row]) -> None:
    assert through(encode(pack_step(deltas))) == deltas


def test_packed_logprobs_cross_packed() -> None:
    packed = PackedLogprobs(pack("=ifiifif", 7, -0.5, 1, 7, -0.5, 9, -2.5), 2)
    deltas = [(0, SequenceDelta("r0", 0, (7,), logprobs=packed)), (1, SequenceDelta("r1", 0, (8,)))]
    (_, found), (_, other) = through(encode(pack_step(deltas)))
    assert isinstance(found.logprobs, PackedLogprobs)
    assert list(found.logprobs) == [TokenLogprobs(7, -0.5, 1, ((7, -0.5), (9, -2.5)))]
    assert other.logprobs is None


def test_a_plain_token_takes_few_bytes() -> None:
    deltas = [(1000 + i, SequenceDelta(f"r{i}", 0, (40_000 + i,))) for i in range(256)]
    assert len(encode(pack_step(deltas))) / len(deltas) < 7.5


def test_a_step_beyond_the_limit_is_split_and_what_cannot_be_becomes_an_error() -> None:
    huge = tuple(TokenLogprobs(1, -0.5, 1, ()) for _ in range(300))
    deltas = tuple((i, SequenceDelta(f"r{i}", 0, (i,))) for i in range(50))
    deltas += ((50, SequenceDelta("r50", 0, (5,), prompt_logprobs=huge)),)
    frames = frames_of(deltas, limit=200)
    reader, got = FrameReader(200), []
    for data in frames:
        for payload in reader.feed(data):
            got += through(payload)
    assert [row for row in got if row[0] < 50] == list(deltas[:50])
    _, last = got[-1]
    assert last.finish_reason is FinishReason.ERROR
    assert last.token_ids == ()
    assert "ask for fewer" in (last.error or "")
