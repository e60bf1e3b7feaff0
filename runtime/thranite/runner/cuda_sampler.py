"""The sampler on a GPU: temperature, truncation and the draw in two or three kernels over the model's own logits.

What is rare (biases, bans, masks, penalties) is first applied by the torch operations of `Sampler`, on an fp32 copy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from thranite.engine.plan import Bitmasks, SlotStart
from thranite.runner.logprobs import ScoredTokens
from thranite.runner.sampler import SampledTokens, Sampler
from thranite.runner.sampling_bias import apply_bitmasks_, ban_early_stops_
from thranite.runner.sampling_state import INT64_MASK, Feature, RowSet, StepRows
from thranite.runner.sampling_transfer import upload
from thranite_kernels.sampler import SamplerScratch, SamplingState, sample

TRUNCATION = Feature.TOP_K | Feature.TOP_P | Feature.MIN_P
SHAPING = Feature.BIAS | Feature.MIN_TOKENS | Feature.PENALTIES


class CudaSampler(Sampler):
    """Writes each row's token to `last_tokens` (int32 [max_slots]) for the next step."""

    def __init__(self, vocab_size: int, max_slots: int, device: torch.device, last_tokens: Tensor) -> None:
        super().__init__(vocab_size, max_slots, device)
        self._vocab_size = vocab_size
        self._device = device
        self._last_tokens = last_tokens
        self._device_states = SamplingState.allocate(max_slots, device)
        self._scratch = SamplerScratch.allocate(max_slots, vocab_size, device)

    def start(self, starts: Sequence[SlotStart]) -> None:
        if not starts:
            return
        super().start(starts)
        state, params = self._device_states, [start.params for start in starts]
        floats = np.array([[p.temperature, p.top_p, p.min_p] for p in params], np.float32).T
        seeds = np.array([p.seed & INT64_MASK for p in params], np.uint64).view(np.int64)
        integers = np.stack(
            [
                np.array([s.slot for s in starts]),
                seeds,
                np.array([s.sample_index for s in starts]),
                np.array([p.top_k for p in params]),
            ]
        )
        columns, packed = upload(floats, self._device), upload(integers, self._device)
        slots = packed[0]
        for target, values in zip((state.temperature, state.top_p, state.min_p), columns, strict=True):
            target.index_copy_(0, slots, values)
        state.seed.index_copy_(0, slots, packed[1])
        state.sample_index.index_copy_(0, slots, packed[2].to(torch.int32))
        state.top_k.index_copy_(0, slots, packed[3].to(torch.int32))

    def draw(
        self,
        logits: Tensor,
        rows: tuple[Sequence[int], Sequence[int]],
        slots: Tensor,
        positions: Tensor,
        masks: Bitmasks,
    ) -> SampledTokens:
        """One token a row of `logits` [R, vocab], which is left as it is.

        `rows`: slots and positions (where the sampled token will stand) as the host knows them; `slots` and
        `positions`, int32 [R], the same on the device.
        """
        step = self._states.rows(*rows)
        asking = step.select(step.having(Feature.LOGPROBS)) if Feature.LOGPROBS in step.used else None
        shaped = self._shape(logits, step, masks) if masks or step.used & SHAPING else logits
        tokens = sample(
            shaped,
            self._device_states,
            slots,
            positions,
            self._scratch,
            filters=bool(step.used & TRUNCATION),
            last_token=self._last_tokens,
        )
        if Feature.PENALTIES in step.used:
            self._penalties.count_(tokens.long(), step)
        return SampledTokens(tokens, None if asking is None else (asking, self._score(logits, tokens, step, asking)))

    def _shape(self, logits: Tensor, rows: StepRows, masks: Bitmasks) -> Tensor:
        """An fp32 copy with biases, masks, bans and penalties applied."""
        copy = logits.float() if logits.dtype != torch.float32 else logits.clone()
        self._bias.apply_(copy, rows)
        apply_bitmasks_(copy, rows, masks)
        ban_early_stops_(copy, rows, self._states, masks)
        if Feature.PENALTIES in rows.used:
            self._penalties.apply_(copy, rows, self._states.params(rows, copy.dtype))
        return copy

    def _score(self, logits: Tensor, tokens: Tensor, rows: StepRows, asking: RowSet) -> ScoredTokens:
        ks = self._states.logprobs[rows.slots[asking.host]].tolist()
        return ScoredTokens(asking.take(logits).float(), asking.take(tokens).long(), ks)
