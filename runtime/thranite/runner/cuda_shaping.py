"""Biases, bitmasks, bans and penalties on a GPU: state by slot, applied by one kernel to an fp32 copy of the logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from thranite.engine.plan import Bitmasks, SlotStart
from thranite.runner.sampling_bias import ConstantBias, having, mask_bytes
from thranite.runner.sampling_penalties import Penalties
from thranite.runner.sampling_pool import RowPool
from thranite.runner.sampling_state import Feature
from thranite.runner.sampling_transfer import upload
from thranite_kernels.shaping import RowMasks, ShapingState, SlotTable, alive_scratch, shape


class CudaShaping:
    """`numbers`: fp32 repetition, presence and frequency penalty, each [max_slots]; `min_position` int32 [max_slots].
    Whoever owns them writes them; the tables are filled here."""

    def __init__(self, vocab_size: int, numbers: Sequence[Tensor], min_position: Tensor) -> None:
        max_slots, self._device = len(min_position), min_position.device
        self._vocab_size = vocab_size
        self._numbers, self._min_position = numbers, min_position
        self._bias = ConstantBias(vocab_size, max_slots, self._device)
        self._stops = StopBits(vocab_size, max_slots, self._device)
        self._penalties = Penalties(vocab_size, max_slots, self._device)
        self._no_masks = RowMasks.none(max_slots, vocab_size, self._device)
        self._alive = alive_scratch(max_slots, vocab_size, self._device)
        self._state = self._tables()

    def start(self, starts: Sequence[SlotStart]) -> None:
        self._bias.start(starts)
        self._stops.start(starts)
        self._penalties.start(starts)
        self._state = self._tables()  # they may have grown

    def _tables(self) -> ShapingState:
        bias, counts, stops = (_table(part.pool) for part in (self._bias, self._penalties, self._stops))
        repetition, presence, frequency = self._numbers
        return ShapingState(bias, counts, stops, self._min_position, repetition, presence, frequency)

    @property
    def counts(self) -> SlotTable:
        """What each draw is counted in."""
        return self._state.counts

    def apply(
        self,
        logits: Tensor,
        slots: Tensor,
        positions: Tensor,
        host_slots: Sequence[int],
        masks: Bitmasks,
        *,
        bans: bool,
    ) -> Tensor:
        """fp32 [R, vocab]. `bans`: some row is shorter than its min_tokens."""
        given = pack_masks(host_slots, masks, self._vocab_size, self._device) if masks else self._no_masks
        return shape(logits, self._state, slots, positions, given, bans=bans, alive=self._alive)


def _table(pool: RowPool) -> SlotTable:
    return SlotTable(pool.rows, pool.table)


class StopBits:
    """Bits of the tokens that are banned while a slot is shorter than min_tokens."""

    def __init__(self, vocab_size: int, max_slots: int, device: torch.device) -> None:
        self.pool = RowPool(-(-vocab_size // 32), torch.int32, device, max_slots)

    def start(self, starts: Sequence[SlotStart]) -> None:
        short, others = having(starts, Feature.MIN_TOKENS)
        rows = self.pool.assign([s.slot for s in short], others)
        if not short:
            return
        bits = np.zeros((len(short), 4 * self.pool.table.shape[1]), np.uint8)  # little-endian: bit t is byte t // 8's
        for own, start in zip(bits, short, strict=True):
            for token in (*start.params.eos_token_ids, *start.params.stop_token_ids):
                own[token // 8] |= 1 << (token % 8)
        device = self.pool.table.device
        self.pool.table.index_copy_(0, upload(rows, device), upload(bits.view(np.int32), device))


def pack_masks(slots: Sequence[int], masks: Bitmasks, vocab_size: int, device: torch.device) -> RowMasks:
    """The rows' bitmasks, in one copy."""
    given = [slot for slot in slots if slot in masks]
    number = {slot: index for index, slot in enumerate(given)}
    index = [number.get(slot, -1) for slot in slots]
    index += [-1] * (-len(index) % 4)  # so that the words' address is a multiple of 16, whatever the rows
    width = -(-vocab_size // 32)
    words = [mask_bytes(masks[slot], 4 * width).view(np.int32) for slot in given]
    packed = upload(np.concatenate([np.array(index, np.int32), *words]), device)
    return RowMasks(packed[len(index) :].view(len(given), width), packed[: len(slots)])
