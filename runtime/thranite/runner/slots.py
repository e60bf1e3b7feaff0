"""What a device keeps for each slot between steps: length, block tables, and the token sampled last."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from thranite.engine.plan import BlockUpdate, SlotStart
from thranite.engine.settings import EngineSettings


class Slots:
    """State by slot. Lengths and tables have a host copy, because the host computes where a token's KV goes.

    On the CPU the device's tables are the host's arrays themselves.
    """

    def __init__(self, settings: EngineSettings, device: torch.device) -> None:
        count = settings.max_num_seqs
        # One entry more than the longest sequence needs: with overlap a step may run past a sequence's end.
        width = settings.max_model_len // settings.layout.block_size + 2
        self._block_size = settings.layout.block_size
        self._shared = device.type == "cpu"
        self.lengths = np.zeros(count, np.int64)  # tokens whose KV is written, launched steps included
        self.host_tables = [np.zeros((count, width), np.int32) for _ in settings.layout.groups]
        self.tables = tuple(
            torch.from_numpy(table) if self._shared else torch.zeros(count, width, dtype=torch.int32, device=device)
            for table in self.host_tables
        )
        self.last_tokens = torch.zeros(count, dtype=torch.int64, device=device)

    def start(self, starts: Sequence[SlotStart]) -> None:
        """New owners take their slots; their tables come as updates."""
        for start in starts:
            self.lengths[start.slot] = start.length

    def update(self, updates: Sequence[BlockUpdate]) -> None:
        """Write table entries, here and on the device."""
        for update in updates:
            last = update.first + len(update.blocks)
            self.host_tables[update.group][update.slot, update.first : last] = update.blocks
        if updates and not self._shared:
            for group, (host, table) in enumerate(zip(self.host_tables, self.tables, strict=True)):
                rows = sorted({update.slot for update in updates if update.group == group})
                if rows:
                    changed = torch.from_numpy(host[rows]).to(table.device)
                    table[torch.tensor(rows, device=table.device)] = changed

    def places(self, group: int, slots: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """page * block_size + offset of each (slot, position), in one KV group."""
        size = self._block_size
        pages = self.host_tables[group][slots, positions // size].astype(np.int64)
        return pages * size + positions % size
