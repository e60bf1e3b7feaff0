"""A `SlotStart` as bytes: what the other ranks need of a sequence that takes a slot, and no more.

They never report, so how many logprobs were asked for stays out; only penalties count tokens, so the others' stay out.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from thranite.engine.plan import SlotStart
from thranite.parallel.wire import FrameReader, FrameWriter
from thranite.sampling_params import TokenParams

_START = struct.Struct("<iQQQ?")  # slot, sample_index, prompt_len, length, late_mask
_PARAMS = struct.Struct("<QQQqQ6d")
_BIASES = struct.Struct("<id")


def write_start(frame: FrameWriter, start: SlotStart) -> None:
    frame.pack(_START, start.slot, start.sample_index, start.prompt_len, start.length, start.late_mask)
    _write_params(frame, start.params)
    frame.integers(start.token_ids if start.params.penalized else ())


def read_start(frame: FrameReader) -> SlotStart:
    slot, sample_index, prompt_len, length, late_mask = frame.pack(_START)
    params = _read_params(frame)
    return SlotStart(
        slot=int(slot),
        sample_index=int(sample_index),
        params=params,
        token_ids=frame.integers(),
        prompt_len=int(prompt_len),
        length=int(length),
        late_mask=bool(late_mask),
    )


def _write_params(frame: FrameWriter, p: TokenParams) -> None:
    floats = (p.temperature, p.top_p, p.min_p, p.presence_penalty, p.frequency_penalty, p.repetition_penalty)
    frame.pack(_PARAMS, p.max_tokens, p.seed & (2**64 - 1), p.n, p.top_k, p.min_tokens, *floats)
    frame.raw(b"".join(_BIASES.pack(token, bias) for token, bias in p.logit_bias))
    for tokens in (p.allowed_token_ids, p.eos_token_ids, p.stop_token_ids):
        frame.integers(tokens)
    _write_lists(frame, p.bad_words)


def _read_params(frame: FrameReader) -> TokenParams:
    max_tokens, seed, n, top_k, min_tokens, *floats = frame.pack(_PARAMS)
    temperature, top_p, min_p, presence, frequency, repetition = floats
    logit_bias = tuple(_BIASES.iter_unpack(frame.raw()))
    allowed, eos, stop = (tuple(frame.integers()) for _ in range(3))
    return TokenParams(
        max_tokens=int(max_tokens),
        seed=int(seed),
        n=int(n),
        temperature=temperature,
        top_p=top_p,
        top_k=int(top_k),
        min_p=min_p,
        presence_penalty=presence,
        frequency_penalty=frequency,
        repetition_penalty=repetition,
        logit_bias=logit_bias,
        allowed_token_ids=allowed,
        bad_words=_read_lists(frame),
        eos_token_ids=eos,
        stop_token_ids=stop,
        min_tokens=int(min_tokens),
    )


def _write_lists(frame: FrameWriter, lists: Sequence[Sequence[int]]) -> None:
    frame.integers([len(item) for item in lists])
    frame.integers([token for item in lists for token in item])


def _read_lists(frame: FrameReader) -> tuple[tuple[int, ...], ...]:
    lengths, flat = frame.integers(), iter(frame.integers())
    return tuple(tuple(next(flat) for _ in range(length)) for length in lengths)
