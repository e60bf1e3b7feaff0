"""An engine in memory: says what it is told to, and remembers what it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

from tests.support import tiny_tokenizers
from thranite.engine.client import EngineInfo
from thranite.engine.stats import EngineStats
from thranite.errors import EngineDead, ThraniteError
from thranite.request import EngineRequest, FinishReason, SequenceDelta, TokenLogprobs
from thranite.text.tokenizer import Tokenizer

Script = Callable[[EngineRequest], Sequence[SequenceDelta]]


def tiny_tokenizer() -> Tokenizer:
    """Byte-level, with a ChatML template."""
    return Tokenizer(tiny_tokenizers.byte_level(), tiny_tokenizers.SPECIAL_TOKENS, {"default": tiny_tokenizers.CHATML})


TOKENIZER = tiny_tokenizer()
INFO = EngineInfo(
    max_model_len=128,
    vocab_size=TOKENIZER.vocab_size,
    max_num_seqs=8,
    num_kv_blocks=64,
    block_size=16,
    eos_token_ids=(TOKENIZER.eos_token_id or 0,),
    architecture="FakeForCausalLM",
    dtype="float32",
    seed=0,
)


def logprobs_of(token: int, k: int) -> TokenLogprobs:
    """The token itself at -0.5, then the ids after it at -1.5, -2.5, …"""
    others = tuple(((token + step) % INFO.vocab_size, -0.5 - step) for step in range(1, k))
    return TokenLogprobs(token, -0.5, 1, ((token, -0.5), *others) if k else ())


def says(*texts: str, finish: FinishReason = FinishReason.STOP, tokens_per_delta: int = 1) -> Script:
    """Sample i says texts[i % len]: its tokens, then EOS for STOP; cut at max_tokens like a real engine."""

    def script(request: EngineRequest) -> Sequence[SequenceDelta]:
        samples = [_sample(request, index, texts[index % len(texts)]) for index in range(request.params.n)]
        longest = max(map(len, samples))
        return [sample[i] for i in range(longest) for sample in samples if i < len(sample)]

    def _sample(request: EngineRequest, index: int, text: str) -> list[SequenceDelta]:
        tokens = TOKENIZER.encode(text, add_special_tokens=False)
        tokens += list(INFO.eos_token_ids) if finish is FinishReason.STOP else []
        reason = FinishReason.LENGTH if len(tokens) > request.params.max_tokens else finish
        tokens = tokens[: request.params.max_tokens]
        cuts = range(0, len(tokens), tokens_per_delta)
        return [_delta(request, index, tokens[cut : cut + tokens_per_delta], cut, len(tokens), reason) for cut in cuts]

    return script


def _delta(
    request: EngineRequest, index: int, tokens: Sequence[int], start: int, total: int, reason: FinishReason
) -> SequenceDelta:
    params, first = request.params, start == 0 and index == 0
    return SequenceDelta(
        request.request_id,
        index,
        tuple(tokens),
        finish_reason=reason if start + len(tokens) == total else None,
        logprobs=None if params.logprobs is None else tuple(logprobs_of(token, params.logprobs) for token in tokens),
        prompt_logprobs=_prompt_logprobs(request) if first else None,
        cached_tokens=4 if first else None,
    )


def _prompt_logprobs(request: EngineRequest) -> tuple[TokenLogprobs | None, ...] | None:
    count = request.params.prompt_logprobs
    if count is None:
        return None
    return (None, *(logprobs_of(token, count) for token in request.prompt_token_ids[1:]))


class FakeStream:
    """A `DeltaStream`: one at a time, or all `at_once`."""

    def __init__(self, deltas: AsyncIterator[SequenceDelta], at_once: bool) -> None:
        self._deltas, self._at_once = deltas, at_once

    async def take(self) -> list[SequenceDelta]:
        if self._at_once:
            return [delta async for delta in self._deltas]
        async for delta in self._deltas:
            return [delta]
        return []


class FakeEngine:
    """An `EngineClient`. `script` gives a request's deltas; after `hold_after` of them it waits for ever."""

    def __init__(
        self, script: Script | None = None, hold_after: int | None = None, max_model_len: int = INFO.max_model_len
    ) -> None:
        self.info = replace(INFO, max_model_len=max_model_len)
        self.script = script or says("hello world")
        self.hold_after = hold_after
        self.hold_submit = False
        self.at_once = False
        self.refuse: ThraniteError | None = None
        self.die_after: int | None = None
        self.dead: EngineDead | None = None
        self.submitted: list[EngineRequest] = []
        self.aborted: list[str] = []
        self.stopped: list[tuple[str, int]] = []

    async def submit(self, request: EngineRequest) -> FakeStream:
        await asyncio.sleep(0)
        if self.refuse is not None:
            raise self.refuse
        self.submitted.append(request)
        if self.hold_submit:
            await asyncio.Event().wait()
        return FakeStream(self._deltas(request), self.at_once)

    async def _deltas(self, request: EngineRequest) -> AsyncIterator[SequenceDelta]:
        for count, delta in enumerate(self.script(request)):
            if count == self.die_after:
                raise EngineDead("killed by a test")
            if count == self.hold_after:
                await asyncio.Event().wait()
            if (request.request_id, delta.index) not in self.stopped:
                yield delta
            await asyncio.sleep(0)

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    def stop(self, request_id: str, index: int) -> None:
        self.stopped.append((request_id, index))

    async def stats(self) -> EngineStats:
        if self.dead is not None:
            raise self.dead
        return EngineStats()
