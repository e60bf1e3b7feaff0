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
from thranite.runner.sampling_state import Feature, Ints, RowParams, StepRows
from thranite.runner.sampling_transfer import upload

_IN_PROMPT, _ONE_OUTPUT = 1, 2  # an entry is 2 * (occurrences in the output) + (1 if the prompt has the token)


class Penalties:
    """Token counts of the slots with a penalty."""

    def __init__(self, vocab_size: int, max_slots: int, device: torch.device) -> None:
        self.pool = RowPool(vocab_size, torch.int32, device, max_slots)

    def start(self, starts: Sequence[SlotStart]) -> None:
        """Count the tokens so far, for any number of sequences in one copy."""
        counted = [start for start in starts if start.params.penalized]
        rows = self.pool.assign([s.slot for s in counted], [s.slot for s in starts if not s.params.penalized])
        if not counted:
            return
        width = self.pool.table.shape[1]
        prompts = [_places(s.token_ids[: s.prompt_len], row * width) for s, row in zip(counted, rows, strict=True)]
        outputs = [_places(s.token_ids[s.prompt_len :], row * width) for s, row in zip(counted, rows, strict=True)]
        prompt, output = np.concatenate(prompts), np.concatenate(outputs)
        packed = upload(np.concatenate([rows, prompt, output]), self.pool.table.device)
        places = torch.split(packed, [len(rows), len(prompt), len(output)])
        flat = self.pool.table.index_fill_(0, places[0], 0).view(-1)
        flat.index_fill_(0, places[1], _IN_PROMPT)
        flat.scatter_add_(0, places[2], torch.full_like(places[2], _ONE_OUTPUT, dtype=torch.int32))

    def apply_(self, logits: Tensor, rows: StepRows, params: RowParams) -> None:
        """Repetition over prompt and output first, then frequency and presence over the output."""
        if Feature.PENALTIES not in rows.used:
            return
        penalized = rows.select(rows.having(Feature.PENALTIES))
        entries = self.pool.table.index_select(0, self.pool.rows_of(rows.slots[penalized.host]))
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
        owners = self.pool.rows_of(rows.slots[penalized.host])
        flat = owners * self.pool.table.shape[1] + penalized.take(tokens)
        ones = torch.full_like(flat, _ONE_OUTPUT, dtype=torch.int32)
        self.pool.table.view(-1).scatter_add_(0, flat, ones)


def _places(tokens: Sequence[int], first: int) -> Ints:
    return np.asarray(tokens, np.int64) + first
