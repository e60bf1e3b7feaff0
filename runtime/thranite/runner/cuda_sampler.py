"""The sampler on a GPU, in a few kernels and without waiting.

Biases, bans and penalties where a row asks for them, on an fp32 copy; truncation where one asks; the draw;
log-probabilities from the model's own logits; one copy to the host.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from thranite.engine.plan import Bitmasks, SlotStart
from thranite.runner.cuda_draw import CudaDraw, DrawBuffer
from thranite.runner.cuda_rows import RunningRows, running_rows
from thranite.runner.cuda_shaping import CudaShaping
from thranite.runner.sampling_state import INT64_MASK, Feature, Ints, SlotFlags
from thranite.runner.sampling_transfer import upload
from thranite_kernels.logprobs import logprobs
from thranite_kernels.sampler import SamplerScratch, SamplingState, sample

TRUNCATION = Feature.TOP_K | Feature.TOP_P | Feature.MIN_P
SHAPING = Feature.BIAS | Feature.PENALTIES


class CudaSampler:
    """Writes each row's token to `last_tokens` (int32 [max_slots]) for the next step."""

    def __init__(self, vocab_size: int, max_slots: int, device: torch.device, last_tokens: Tensor) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._last_tokens = last_tokens
        self._flags = SlotFlags(max_slots, device)
        width = -(-max_slots // 4) * 4  # every row begins at a multiple of 16 bytes
        self._floats = torch.zeros(6, width, dtype=torch.float32, device=device)
        self._integers = torch.zeros(3, width, dtype=torch.int32, device=device)
        temperature, top_p, min_p, *penalties = self._floats[:, :max_slots].unbind()
        top_k, sample_index, min_position = self._integers[:, :max_slots].unbind()
        seed = torch.zeros(max_slots, dtype=torch.int64, device=device)
        self._state = SamplingState(temperature, top_k, top_p, min_p, seed, sample_index)
        self._shaping = CudaShaping(vocab_size, penalties, min_position)
        self._scratch = SamplerScratch.allocate(max_slots, vocab_size, device)
        self._running: tuple[RunningRows, DrawBuffer] | None = None

    def start(self, starts: Sequence[SlotStart]) -> None:
        """Sequences take their slots."""
        if not starts:
            return
        self._running = None
        self._flags.start(starts)
        self._shaping.start(starts)
        params = [start.params for start in starts]
        floats = [
            (p.temperature, p.top_p, p.min_p, p.repetition_penalty, p.presence_penalty, p.frequency_penalty)
            for p in params
        ]
        integers = [(s.slot, s.params.top_k, s.sample_index, s.prompt_len + s.params.min_tokens) for s in starts]
        seeds = np.array([p.seed & INT64_MASK for p in params], np.uint64).view(np.int64)
        columns = upload(np.array(floats, np.float32).T, self._device)
        packed = upload(np.vstack([np.array(integers, np.int64).T, seeds]), self._device)
        self._floats.index_copy_(1, packed[0], columns)
        self._integers.index_copy_(1, packed[0], packed[1:4].to(torch.int32))
        self._state.seed.index_copy_(0, packed[0], packed[4])

    def draw(
        self,
        logits: Tensor,
        rows: tuple[Sequence[int], Ints],
        slots: Tensor,
        positions: Tensor,
        masks: Bitmasks,
    ) -> CudaDraw:
        """One token a row of `logits` [R, vocab], which is left as it is.

        `rows`: the slots as the host knows them, and for each slot where its sampled token will stand; `slots` and
        `positions`, int32 [R], the rows' on the device.
        """
        running, buffer = self._rows(rows[0])
        bans = running.short(rows[1])
        shaped = logits
        if masks or bans or running.used & SHAPING:
            shaped = self._shaping.apply(logits, slots, positions, rows[0], masks, bans=bans)
        sample(
            shaped,
            self._state,
            slots,
            positions,
            self._scratch,
            filters=bool(running.used & TRUNCATION),
            last_token=self._last_tokens,
            counts=self._shaping.counts,
            out=buffer.tokens,
        )
        asking = running.asking
        if asking is not None:
            logprobs(
                logits,
                buffer.tokens,
                asking.width,
                wanted=asking.wanted,
                out=buffer.scores,
                scratch=buffer.scratch,
            )
        return buffer.send()

    def _rows(self, slots: Sequence[int]) -> tuple[RunningRows, DrawBuffer]:
        """Made anew only where other sequences run than in the step before."""
        if self._running is None or self._running[0].slots != slots:
            rows = running_rows(slots, self._flags, self._vocab_size, self._device)
            self._running = rows, DrawBuffer(len(slots), rows.asking, self._vocab_size, self._device)
        return self._running
