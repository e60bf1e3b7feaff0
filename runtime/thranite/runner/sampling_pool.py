"""Rows of vocabulary size that only some slots need."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from thranite.runner.sampling_state import Ints
from thranite.runner.sampling_transfer import upload


class RowPool:
    """A [capacity, vocab] table on the device; it grows by doubling when another slot needs a row.

    Growth allocates and copies on the stream, so steps in flight keep the old table.
    """

    def __init__(self, vocab_size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.table = torch.zeros(0, vocab_size, dtype=dtype, device=device)
        self._row_of: dict[int, int] = {}  # by slot
        self._free: list[int] = []

    def take(self, slot: int) -> Tensor:
        """The slot's row, new or old, with arbitrary contents."""
        if slot not in self._row_of:
            if not self._free:
                self._grow()
            self._row_of[slot] = self._free.pop()
        return self.table[self._row_of[slot]]

    def release(self, slot: int) -> None:
        """Give the slot's row back, if it has one."""
        row = self._row_of.pop(slot, None)
        if row is not None:
            self._free.append(row)

    def rows_of(self, slots: Ints) -> Tensor:
        """int64 [n]: rows of the table that belong to these slots."""
        return upload(np.array([self._row_of[int(slot)] for slot in slots], np.int64), self.table.device)

    def _grow(self) -> None:
        held = len(self.table)
        grown = self.table.new_zeros(max(2 * held, 1), self.table.shape[1])
        grown[:held] = self.table
        self.table = grown
        self._free.extend(range(held, len(grown)))
