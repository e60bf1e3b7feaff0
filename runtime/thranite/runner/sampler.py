"""From logits to tokens, for a whole step at once and without waiting for the device.

The order of operations is the one that vLLM documents: log-probabilities of the raw logits; allowed tokens and masks,
bad words, minimal length, biases; penalties; temperature, min_p, top_k, top_p; one draw. The draw samples
softmax(logits / temperature) by argmax of values + Gumbel noise, a chunk of the vocabulary first and then a token of it
(the kernels' definition: `thranite_kernels.rng`); greedy rows take the plain argmax.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from thranite.engine.plan import Bitmasks, SlotStart
from thranite.request import TokenLogprobs
from thranite.runner.counter_rng import DRAW_CHUNK, FIRST_CHUNK, exponential_logs
from thranite.runner.logprobs import ScoredTokens
from thranite.runner.sampling_bias import ConstantBias, apply_bitmasks_, ban_early_stops_
from thranite.runner.sampling_penalties import Penalties
from thranite.runner.sampling_state import Feature, RowParams, RowSet, SlotStates, StepRows
from thranite.runner.sampling_transfer import HostCopies
from thranite.runner.sampling_truncation import truncate_

# Elements (rows times vocabulary) sampled at a time: temporaries take up to 32 bytes each and a sort's workspace.
PART = 2**24
# Elements that the CPU draws at a time: temporaries then stay in its cache (3 times faster than 64 rows at once).
CPU_PART = 2**17
OVERWRITING = (
    Feature.BIAS | Feature.MIN_TOKENS | Feature.PENALTIES | Feature.MIN_P | Feature.TOP_K | Feature.TOP_P
)  # what changes the logits in place


class Scores(Protocol):
    """Scores of some tokens, in order. `result` waits for the device."""

    def result(self) -> list[TokenLogprobs]: ...


@dataclass(frozen=True, slots=True)
class ScoredParts:
    """Scores that were computed in parts."""

    parts: Sequence[Scores]

    def result(self) -> list[TokenLogprobs]:
        return [score for part in self.parts for score in part.result()]


class SampledTokens:
    """A step's draw. `tokens`: int64 [R] on the device, for the next step to read without waiting."""

    def __init__(self, tokens: Tensor, scored: tuple[RowSet, Scores] | None) -> None:
        self.tokens = tokens
        self._copies = HostCopies([tokens])
        self._scored = scored

    def result(self) -> tuple[list[tuple[int, ...]], dict[int, tuple[TokenLogprobs, ...]]]:
        """Tokens of each row, and log-probabilities by row for those that asked. Waits for the device."""
        tokens: list[tuple[int, ...]] = list(zip(self._copies.wait()[0].tolist(), strict=True))
        if self._scored is None:
            return tokens, {}
        rows, scores = self._scored
        return tokens, {int(row): (score,) for row, score in zip(rows.host, scores.result(), strict=True)}


class Sampler:
    """State by slot, and the draw. One thread, one stream: steps and starts take effect in the order of the calls."""

    def __init__(self, vocab_size: int, max_slots: int, device: torch.device) -> None:
        self._states = SlotStates(vocab_size, max_slots, device)
        self._bias = ConstantBias(vocab_size, max_slots, device)
        self._penalties = Penalties(vocab_size, max_slots, device)

    def start(self, starts: Sequence[SlotStart]) -> None:
        """Sequences take their slots."""
        if starts:
            self._states.start(starts)
            self._bias.start(starts)
            self._penalties.start(starts)

    def sample(self, logits: Tensor, slots: Sequence[int], positions: Sequence[int], masks: Bitmasks) -> SampledTokens:
        """Draw one token a row.

        `logits` [R, vocab] float32 or float64 is overwritten; `positions[r]` is the index in the sequence (prompt and
        output) of the token being drawn; `masks` concern the slots that they name.
        """
        logits = logits.contiguous()
        count, width = logits.shape
        size = max(PART // width, 1)
        slices = [slice(first, first + size) for first in range(0, max(count, 1), size)]
        parts = [self._sample_part(logits[s], self._states.rows(slots[s], positions[s]), masks) for s in slices]
        if len(parts) == 1:
            return SampledTokens(*parts[0])
        return SampledTokens(torch.cat([tokens for tokens, _ in parts]), _joined([scored for _, scored in parts], size))

    def _sample_part(
        self, logits: Tensor, rows: StepRows, masks: Bitmasks
    ) -> tuple[Tensor, tuple[RowSet, Scores] | None]:
        asking = rows.select(rows.having(Feature.LOGPROBS)) if Feature.LOGPROBS in rows.used else None
        raw = None
        if asking is not None:
            overwritten = bool(masks) or bool(rows.used & OVERWRITING)
            raw = logits.clone() if overwritten and asking.index is None else asking.take(logits)
        self._bias.apply_(logits, rows)
        apply_bitmasks_(logits, rows, masks)
        ban_early_stops_(logits, rows, self._states, masks)
        tokens = self._draw(logits, rows)
        if asking is None or raw is None:
            return tokens, None
        ks = self._states.logprobs[rows.slots[asking.host]].tolist()
        return tokens, (asking, ScoredTokens(raw, asking.take(tokens), ks))

    def _draw(self, logits: Tensor, rows: StepRows) -> Tensor:
        if not rows.used & (Feature.RANDOM | Feature.PENALTIES):
            return greedy(logits)
        params = self._states.params(rows, logits.dtype)
        self._penalties.apply_(logits, rows, params)
        tokens = self._choose(logits, rows, params)
        self._penalties.count_(tokens, rows)
        return tokens

    def _choose(self, logits: Tensor, rows: StepRows, params: RowParams) -> Tensor:
        if Feature.RANDOM not in rows.used:
            return greedy(logits)
        truncate_(logits, rows, params, self._states.top_k[rows.slots])
        random = rows.select(rows.having(Feature.RANDOM))
        drawn = draw(random.take(logits), random.take(params.keys), random.take(params.temperature))
        if random.index is None:
            return drawn
        return greedy(logits).index_copy_(0, random.index, drawn)


def _joined(parts: Sequence[tuple[RowSet, Scores] | None], size: int) -> tuple[RowSet, Scores] | None:
    """Scores of the parts of a step, each of `size` rows, as if of one."""
    held = [(number * size, part) for number, part in enumerate(parts) if part is not None]
    if not held:
        return None
    rows = np.concatenate([rows.host + first for first, (rows, _) in held])
    return RowSet(rows, None), ScoredParts([scores for _, (_, scores) in held])


def greedy(logits: Tensor) -> Tensor:
    """int64 [R]: the best token, the lowest id among equals."""
    return logits.argmax(-1)


def draw(logits: Tensor, keys: Tensor, temperature: Tensor) -> Tensor:
    """int64 [R]: a token from softmax(logits / temperature) a row, chosen by its key."""
    count, width = logits.shape
    size = count if logits.is_cuda else max(CPU_PART // width, 1)
    slices = [slice(first, first + size) for first in range(0, count, size)]
    return torch.cat([_draw_part(logits[s], keys[s], temperature[s, None]) for s in slices])


def _draw_part(logits: Tensor, keys: Tensor, temperature: Tensor) -> Tensor:
    count, width = logits.shape
    size, chunks = min(width, DRAW_CHUNK), -(-width // DRAW_CHUNK)
    scaled = logits.new_full((count, size * chunks), -torch.inf)
    torch.div(logits, temperature, out=scaled[:, :width])
    numbers = torch.arange(max(size, chunks), dtype=torch.int32, device=logits.device)
    shares = scaled.view(count, chunks, size).logsumexp(-1)
    chunk = shares.sub_(exponential_logs(keys, FIRST_CHUNK + numbers[:chunks], logits.dtype)).argmax(-1, keepdim=True)
    ids = chunk * size + numbers[:size]
    noise = exponential_logs(keys, ids.int(), logits.dtype)
    return ids.gather(1, scaled.gather(1, ids).sub_(noise).argmax(-1, keepdim=True))[:, 0]
