"""All deltas that one engine step brought to one connection, as parallel arrays: about seven bytes a token.

Row i of `handles`, `indexes` and `counts` is one SequenceDelta; `tokens` holds the rows' tokens one after another.
`counts` is empty when every row has one token, as in plain decoding. What few rows have stands in `ends` and `extras`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice

import msgspec

from thranite.packed_logprobs import PackedLogprobs
from thranite.request import FinishReason, SequenceDelta, TokenLogprobs


class Logprobs(msgspec.Struct, frozen=True, array_like=True):
    """TokenLogprobs without field names."""

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


class Packed(msgspec.Struct, frozen=True, array_like=True):
    """PackedLogprobs: what a GPU brings crosses as it is."""

    data: bytes
    top: int


class End(msgspec.Struct, frozen=True, array_like=True):
    row: int
    reason: FinishReason
    stop_token_id: int | None = None


class Extra(msgspec.Struct, frozen=True, array_like=True):
    row: int
    logprobs: tuple[Logprobs, ...] | None = None
    prompt_logprobs: tuple[Logprobs | None, ...] | None = None
    cached_tokens: int | None = None
    error: str | None = None
    embedding: tuple[float, ...] | None = None
    packed: Packed | None = None  # in place of `logprobs`


class Step(msgspec.Struct, tag=19, frozen=True, array_like=True):
    handles: list[int]
    indexes: list[int]
    tokens: list[int]
    counts: list[int]
    ends: list[End]
    extras: list[Extra]


Row = tuple[int, SequenceDelta]  # (handle, delta)


def pack_step(rows: Sequence[Row]) -> Step:
    counts = [len(delta.token_ids) for _, delta in rows]
    deltas = [delta for _, delta in rows]
    return Step(
        handles=[handle for handle, _ in rows],
        indexes=[delta.index for delta in deltas],
        tokens=[token for delta in deltas for token in delta.token_ids],
        counts=[] if all(count == 1 for count in counts) else counts,
        ends=[End(i, d.finish_reason, d.stop_token_id) for i, d in enumerate(deltas) if d.finish_reason is not None],
        extras=[_extra(i, d) for i, d in enumerate(deltas) if _has_extra(d)],
    )


def unpack_step(step: Step, request_id: Callable[[int], str]) -> Iterable[Row]:
    """Yield (handle, delta) in the rows' order; `request_id` names a handle's request."""
    ends = {end.row: end for end in step.ends}
    extras = {extra.row: extra for extra in step.extras}
    for row, (handle, index, tokens) in enumerate(zip(step.handles, step.indexes, _split(step), strict=True)):
        if row in ends or row in extras:
            yield handle, _rich_delta(request_id(handle), index, tokens, ends.get(row), extras.get(row))
        else:
            yield handle, SequenceDelta(request_id(handle), index, tokens)


def _split(step: Step) -> Iterable[tuple[int, ...]]:
    """Each row's tokens."""
    if not step.counts:
        return zip(step.tokens, strict=True)
    tokens = iter(step.tokens)
    return (tuple(islice(tokens, count)) for count in step.counts)


def _rich_delta(
    request_id: str, index: int, tokens: tuple[int, ...], end: End | None, extra: Extra | None
) -> SequenceDelta:
    return SequenceDelta(
        request_id=request_id,
        index=index,
        token_ids=tokens,
        finish_reason=end.reason if end else None,
        stop_token_id=end.stop_token_id if end else None,
        logprobs=_logprobs(extra) if extra else None,
        prompt_logprobs=_unpack_prompt(extra.prompt_logprobs) if extra else None,
        cached_tokens=extra.cached_tokens if extra else None,
        error=extra.error if extra else None,
        embedding=extra.embedding if extra else None,
    )


def _has_extra(delta: SequenceDelta) -> bool:
    return (
        delta.logprobs is not None
        or delta.cached_tokens is not None
        or delta.error is not None
        or delta.prompt_logprobs is not None
        or delta.embedding is not None
    )


def _extra(row: int, delta: SequenceDelta) -> Extra:
    prompt, scores = delta.prompt_logprobs, delta.logprobs
    packed = Packed(bytes(scores.data), scores.top) if isinstance(scores, PackedLogprobs) else None
    return Extra(
        row,
        None if scores is None or packed else tuple(_pack(entry) for entry in scores),
        None if prompt is None else tuple(None if entry is None else _pack(entry) for entry in prompt),
        delta.cached_tokens,
        delta.error,
        delta.embedding,
        packed,
    )


def _pack(entry: TokenLogprobs) -> Logprobs:
    return Logprobs(entry.token_id, entry.logprob, entry.rank, entry.top)


def _unpack(entry: Logprobs) -> TokenLogprobs:
    return TokenLogprobs(entry.token_id, entry.logprob, entry.rank, entry.top)


def _logprobs(extra: Extra) -> Sequence[TokenLogprobs] | None:
    if extra.packed is not None:
        return PackedLogprobs(extra.packed.data, extra.packed.top)
    return None if extra.logprobs is None else tuple(_unpack(entry) for entry in extra.logprobs)


def _unpack_prompt(entries: tuple[Logprobs | None, ...] | None) -> tuple[TokenLogprobs | None, ...] | None:
    return None if entries is None else tuple(None if entry is None else _unpack(entry) for entry in entries)
