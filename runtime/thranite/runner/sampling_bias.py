"""What may be sampled at all: constant biases and bans of a slot, late bitmasks, and the minimal length."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from thranite.engine.plan import Bitmasks, SlotStart
from thranite.runner.sampling_pool import RowPool
from thranite.runner.sampling_state import Feature, RowSet, SlotStates, StepRows, features
from thranite.runner.sampling_transfer import upload
from thranite.sampling_params import TokenParams


def having(starts: Sequence[SlotStart], feature: Feature) -> tuple[list[SlotStart], list[int]]:
    """The starts whose parameters ask for it, and the slots of the others."""
    chosen = [feature in features(start.params) for start in starts]
    asking = [start for start, asks in zip(starts, chosen, strict=True) if asks]
    return asking, [start.slot for start, asks in zip(starts, chosen, strict=True) if not asks]


class ConstantBias:
    """One addend a token for the slots with logit_bias, allowed_token_ids or bad words of one token; -inf bans."""

    def __init__(self, vocab_size: int, max_slots: int, device: torch.device) -> None:
        self.pool = RowPool(vocab_size, torch.float32, device, max_slots)

    def start(self, starts: Sequence[SlotStart]) -> None:
        biased, others = having(starts, Feature.BIAS)
        for start, row in zip(biased, self.pool.assign([s.slot for s in biased], others), strict=True):
            _fill_bias(self.pool.table[row], start.params)

    def apply_(self, logits: Tensor, rows: StepRows) -> None:
        if Feature.BIAS not in rows.used:
            return
        biased = rows.select(rows.having(Feature.BIAS))
        part = biased.take(logits)
        part.add_(self.pool.table.index_select(0, self.pool.rows_of(rows.slots[biased.host])))
        biased.put_(logits, part)


def _fill_bias(row: Tensor, params: TokenParams) -> None:
    def index(ids: Sequence[int]) -> Tensor:
        return upload(np.array(ids, np.int64), row.device)

    row.fill_(-math.inf if params.allowed_token_ids else 0.0)
    if params.allowed_token_ids:
        row.index_fill_(0, index(params.allowed_token_ids), 0.0)
    if params.logit_bias:
        values = upload(np.array([bias for _, bias in params.logit_bias], np.float32), row.device)
        row.index_add_(0, index([token for token, _ in params.logit_bias]), values)
    banned = [word[0] for word in params.bad_words if len(word) == 1]
    if banned:
        row.index_fill_(0, index(banned), -math.inf)


def apply_bitmasks_(logits: Tensor, rows: StepRows, masks: Bitmasks) -> None:
    """Ban the tokens whose bit is 0, in the rows whose slot has a mask."""
    if not masks:
        return
    masked = rows.select(np.array([int(slot) in masks for slot in rows.slots], np.bool_))
    if not len(masked):
        return
    vocab_size = logits.shape[1]
    width = -(-vocab_size // 32) * 4
    packed = np.stack([mask_bytes(masks[int(slot)], width) for slot in rows.slots[masked.host]])
    shifts = torch.arange(8, dtype=torch.uint8, device=logits.device)
    bits = (upload(packed, logits.device)[:, :, None] >> shifts) & 1  # little-endian words: bit t is byte t // 8's
    banned = bits.view(len(masked), -1)[:, :vocab_size] == 0
    part = masked.take(logits)
    part.masked_fill_(banned, -math.inf)
    masked.put_(logits, part)


def mask_bytes(mask: bytes, width: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    if len(mask) != width:
        raise ValueError(f"a bitmask has {len(mask)} bytes; this vocabulary needs {width}")
    return np.frombuffer(mask, np.uint8)


def ban_early_stops_(logits: Tensor, rows: StepRows, states: SlotStates, masks: Bitmasks) -> None:
    """Ban EOS and stop ids in the rows that are shorter than min_tokens.

    Where a mask or allowed_token_ids leaves nothing but them (a grammar that is complete), they stay allowed: ending
    early is better than a token that was ruled out.
    """
    if Feature.MIN_TOKENS not in rows.used:
        return
    short = rows.having(Feature.MIN_TOKENS)
    limited = rows.having(Feature.ALLOWED) | np.array([int(slot) in masks for slot in rows.slots], np.bool_)
    contested = rows.select(short & limited) if (short & limited).any() else None
    before = None if contested is None else contested.take(logits).clone()
    vocab_size = logits.shape[1]
    flat = [row * vocab_size + token for row in np.flatnonzero(short) for token in states.stop_ids[rows.slots[row]]]
    logits.view(-1).index_fill_(0, upload(np.array(flat, np.int64), logits.device), -math.inf)
    if contested is not None and before is not None:
        _restore_empty_(logits, contested, before)


def _restore_empty_(logits: Tensor, rows: RowSet, before: Tensor) -> None:
    part = rows.take(logits)
    empty = part.amax(-1, keepdim=True) == -math.inf
    part.copy_(torch.where(empty, before, part))
    rows.put_(logits, part)
