"""What a GPU keeps for each slot, and how a plan's differences reach it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from thranite.engine.plan import BlockUpdate, SlotStart, StepPlan
from thranite.engine.settings import EngineSettings
from thranite.runner.sampling_state import Ints
from thranite.runner.sampling_transfer import upload
from thranite_kernels.prepare_inputs import SlotState


class CudaSlots:
    """Lengths, last tokens and block tables by slot, on the device. Only differences cross.

    `host_lengths` mirrors the device's, for the sampler's rules about positions.
    """

    def __init__(self, settings: EngineSettings, device: torch.device) -> None:
        count = settings.max_num_seqs
        # With overlap a sequence may run one step past its end: one entry more than the longest needs.
        self._width = settings.max_model_len // settings.layout.block_size + 2
        self._device = device
        self.host_lengths = np.zeros(count, np.int64)
        self._decodes: Sequence[int] = []  # of the newest step that had any
        self._decoding: Ints = np.zeros(0, np.int64)  # the same
        self.lengths = torch.zeros(count, dtype=torch.int32, device=device)
        self.last_tokens = torch.zeros(count, dtype=torch.int32, device=device)
        self.tables: tuple[Tensor, ...] = tuple(
            torch.zeros(count, self._width, dtype=torch.int32, device=device) for _ in settings.layout.groups
        )
        self.groups = tuple(SlotState(self.last_tokens, self.lengths, table) for table in self.tables)

    def apply(self, starts: Sequence[SlotStart], updates: Sequence[BlockUpdate]) -> None:
        """New owners' lengths and all changed table entries, in one copy."""
        if not starts and not updates:
            return
        for start in starts:
            self.host_lengths[start.slot] = start.length
        slots = [start.slot for start in starts]
        lengths = [start.length for start in starts]
        places: list[list[int]] = [[] for _ in self.tables]
        pages: list[list[int]] = [[] for _ in self.tables]
        for update in updates:
            first = update.slot * self._width + update.first
            places[update.group].extend(range(first, first + len(update.blocks)))
            pages[update.group].extend(update.blocks)
        parts = [slots, lengths]
        for where, what in zip(places, pages, strict=True):
            parts += [where, what]
        packed = upload(np.fromiter((x for part in parts for x in part), np.int64), self._device)
        views = torch.split(packed, [len(part) for part in parts])
        if slots:
            self.lengths.index_copy_(0, views[0], views[1].to(torch.int32))
        for table, where_, what_ in zip(self.tables, views[2::2], views[3::2], strict=True):
            if len(where_):
                table.view(-1).index_copy_(0, where_, what_.to(torch.int32))

    def advance(self, plan: StepPlan) -> None:
        """Follow a launched step in the host's mirror; the device's lengths advance with the inputs' preparation."""
        if plan.decodes:
            if plan.decodes != self._decodes:
                self._decodes, self._decoding = list(plan.decodes), np.array(plan.decodes, np.int64)
            self.host_lengths[self._decoding] += 1
        for prefill in plan.prefills:
            self.host_lengths[prefill.slot] += len(prefill.token_ids)
