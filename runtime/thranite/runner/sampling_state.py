"""What the sampler keeps per slot, and the rows of one step that use each feature.

The device holds the parameters as a structure of arrays; the host holds what decides which work a step needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thranite.engine.plan import SlotStart
from thranite.runner.counter_rng import mix64, row_keys
from thranite.runner.sampling_transfer import upload
from thranite.sampling_params import TokenParams

INT64_MASK = 2**64 - 1
# Below this, float32 temperatures lose precision or vanish; the distribution is a single token long before.
MIN_TEMPERATURE = 1e-30

Ints = NDArray[np.int64]


class Feature(IntFlag):
    """Work that a slot's parameters ask for. A step does what the union over its rows asks for."""

    RANDOM = 1  # temperature above 0
    LOGPROBS = 2
    BIAS = 4  # logit_bias, allowed_token_ids, bad words of one token
    ALLOWED = 8  # allowed_token_ids
    MIN_TOKENS = 16
    PENALTIES = 32
    MIN_P = 64
    TOP_K = 128
    TOP_P = 256


@dataclass(frozen=True, slots=True)
class RowSet:
    """Some rows of a step: their numbers on the host, and on the device (None: every row, in order)."""

    host: Ints
    index: Tensor | None

    def __len__(self) -> int:
        return len(self.host)

    def take(self, values: Tensor) -> Tensor:
        """These rows of `values`: `values` itself if they are all, else a copy."""
        return values if self.index is None else values.index_select(0, self.index)

    def put_(self, target: Tensor, values: Tensor) -> None:
        """Write back what `take` gave, after it was changed in place."""
        if self.index is not None:
            target.index_copy_(0, self.index, values)


@dataclass(frozen=True, slots=True)
class StepRows:
    """One step's rows as the host sees them."""

    slots: Ints
    positions: Ints
    flags: Ints  # Feature bits of each row
    used: Feature  # their union
    device: torch.device

    def select(self, chosen: NDArray[np.bool_]) -> RowSet:
        if chosen.all():
            return RowSet(np.arange(len(chosen)), None)
        rows = np.flatnonzero(chosen)
        return RowSet(rows, upload(rows, self.device))

    def having(self, feature: Feature) -> NDArray[np.bool_]:
        chosen: NDArray[np.bool_] = (self.flags & int(feature)) != 0
        return chosen


@dataclass(frozen=True, slots=True)
class RowParams:
    """Parameters of a step's rows on the device, [R] each, in the logits' dtype unless said."""

    keys: Tensor  # int64, bits of the rows' random keys
    temperature: Tensor
    top_p: Tensor  # float64
    top_k: Tensor  # int64, the vocabulary's size where off
    min_p: Tensor  # float64
    presence_penalty: Tensor
    frequency_penalty: Tensor
    repetition_penalty: Tensor


class SlotFlags:
    """What decides on the host which work a step needs, by slot."""

    def __init__(self, max_slots: int, device: torch.device) -> None:
        self._device = device
        self._flags = np.zeros(max_slots, np.int64)
        self._min_position = np.zeros(max_slots, np.int64)
        self.logprobs = np.zeros(max_slots, np.int64)  # k of the slots that asked

    def start(self, starts: Sequence[SlotStart]) -> None:
        slots = [s.slot for s in starts]
        self._flags[slots] = [features(s.params) for s in starts]
        self._min_position[slots] = [s.prompt_len + s.params.min_tokens for s in starts]
        self.logprobs[slots] = [s.params.logprobs or 0 for s in starts]

    def of(self, slots: Ints) -> tuple[Ints, Ints]:
        """Feature bits of each row, and the positions before which MIN_TOKENS holds."""
        return self._flags[slots], self._min_position[slots]

    def rows(self, slots: Sequence[int], positions: Sequence[int]) -> StepRows:
        where, at = np.asarray(slots, np.int64), np.asarray(positions, np.int64)
        flags = self._flags[where]
        flags = np.where(at < self._min_position[where], flags, flags & ~int(Feature.MIN_TOKENS))
        return StepRows(where, at, flags, Feature(int(np.bitwise_or.reduce(flags, initial=0))), self._device)


class SlotStates(SlotFlags):
    """Parameters by slot. `start` is one copy for any number of sequences."""

    def __init__(self, vocab_size: int, max_slots: int, device: torch.device) -> None:
        super().__init__(max_slots, device)
        self._vocab_size = vocab_size
        self._params = torch.zeros(7, max_slots, dtype=torch.float64, device=device)
        self._mixed_seeds = np.zeros(max_slots, np.uint64)
        self._sample_indices = np.zeros(max_slots, np.uint64)
        self.stop_ids: list[tuple[int, ...]] = [()] * max_slots  # banned before the minimal length
        self.top_k = np.zeros(max_slots, np.int64)

    def start(self, starts: Sequence[SlotStart]) -> None:
        super().start(starts)
        slots = np.array([s.slot for s in starts], np.int64)
        table = np.array([self._columns(s.params) for s in starts], np.float64)
        packed = upload(np.vstack([table.T, slots[None].astype(np.float64)]), self._device)
        self._params.index_copy_(1, packed[-1].long(), packed[:-1])
        seeds = np.array([s.params.seed & INT64_MASK for s in starts], np.uint64)
        self._mixed_seeds[slots] = mix64(seeds)
        self._sample_indices[slots] = [s.sample_index for s in starts]
        self.top_k[slots] = [s.params.top_k for s in starts]
        for s in starts:
            self.stop_ids[s.slot] = tuple({*s.params.eos_token_ids, *s.params.stop_token_ids})

    def params(self, rows: StepRows, dtype: torch.dtype) -> RowParams:
        seeds, indices = self._mixed_seeds[rows.slots], self._sample_indices[rows.slots]
        keys = row_keys(seeds, indices, rows.positions.astype(np.uint64))
        packed = upload(np.stack([rows.slots, keys.view(np.int64)]), self._device)
        exact = self._params.index_select(1, packed[0])
        rounded = exact.to(dtype)
        return RowParams(packed[1], rounded[0], exact[1], exact[2].long(), exact[3], rounded[4], rounded[5], rounded[6])

    def _columns(self, p: TokenParams) -> tuple[float, ...]:
        top_k = float(p.top_k or self._vocab_size)
        penalties = (p.presence_penalty, p.frequency_penalty, p.repetition_penalty)
        return (max(p.temperature, MIN_TEMPERATURE), p.top_p, top_k, p.min_p, *penalties)


def features(p: TokenParams) -> Feature:
    """What the parameters ask of the sampler. Truncation never changes a greedy row, so it is not asked for."""
    single_words = any(len(word) == 1 for word in p.bad_words)
    asked = {
        Feature.RANDOM: not p.greedy,
        Feature.LOGPROBS: p.logprobs is not None,
        Feature.BIAS: bool(p.logit_bias or p.allowed_token_ids or single_words),
        Feature.ALLOWED: bool(p.allowed_token_ids),
        Feature.MIN_TOKENS: p.min_tokens > 0 and bool(p.eos_token_ids or p.stop_token_ids),
        Feature.PENALTIES: p.penalized,
        Feature.MIN_P: not p.greedy and p.min_p > 0.0,
        Feature.TOP_K: not p.greedy and p.top_k > 0,
        Feature.TOP_P: not p.greedy and p.top_p < 1.0,
    }
    return Feature(sum(feature for feature, wanted in asked.items() if wanted))
