"""Presence, frequency and repetition penalties over counts that live on the device.

The counts are updated on the device after each draw, because the next step may be drawn before the host has read it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from thranite.engine.plan import SlotStart
from thranite.runner.sampling_pool import RowPool
from thranite.runner.sampling_state import Feature, RowParams, StepRows
from thranite.runner.sampling_transfer import upload

_IN_PROMPT, _ONE_OUTPUT = 1, 2  # an entry is 2 * (occurrences in the output) + (1 if the prompt has the token)


class Penalties:
    """Token counts of the slots with a penalty."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._pool = RowPool(vocab_size, torch.int32, device)

    def start(self, starts: Sequence[SlotStart]) -> None:
        for start in starts:
            if start.params.penalized:
                _count(self._pool.take(start.slot), start)
            else:
                self._pool.release(start.slot)

    def apply_(self, logits: Tensor, rows: StepRows, params: RowParams) -> None:
        """Repetition over prompt and output first, then frequency and presence over the output."""
        if Feature.PENALTIES not in rows.used:
            return
        penalized = rows.select(rows.having(Feature.PENALTIES))
        entries = self._pool.table.index_select(0, self._pool.rows_of(rows.slots[penalized.host]))
        part = penalized.take(logits)
        repetition = penalized.take(params.repetition_penalty)[:, None]
        frequency = penalized.take(params.frequency_penalty)[:, None]
        presence = penalized.take(params.presence_penalty)[:, None]
        scaled = torch.where(part > 0, part / repetition, part * repetition)
        part.copy_(torch.where(entries > 0, scaled, part))
        counts = entries.bitwise_right_shift_(1)
        part.sub_(counts * frequency).sub_((counts > 0) * presence)
        penalized.put_(logits, part)

    def count_(self, tokens: Tensor, rows: StepRows) -> None:
        """Add the tokens just drawn, int64 [R] on the device."""
        if Feature.PENALTIES not in rows.used:
            return
        penalized = rows.select(rows.having(Feature.PENALTIES))
        owners = self._pool.rows_of(rows.slots[penalized.host])
        flat = owners * self._pool.table.shape[1] + penalized.take(tokens)
        ones = torch.full_like(flat, _ONE_OUTPUT, dtype=torch.int32)
        self._pool.table.view(-1).scatter_add_(0, flat, ones)


def _count(row: Tensor, start: SlotStart) -> None:
    tokens = upload(np.array(start.token_ids, np.int64), row.device)
    prompt, output = tokens[: start.prompt_len], tokens[start.prompt_len :]
    row.zero_()
    row.index_fill_(0, prompt, _IN_PROMPT)
    row.scatter_add_(0, output, torch.full_like(output, _ONE_OUTPUT, dtype=torch.int32))
