"""Rows of vocabulary size that only some slots need."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thranite.runner.sampling_state import Ints
from thranite.runner.sampling_transfer import upload


class RowPool:
    """A [capacity, width] table on the device; it grows by doubling when more slots need a row.

    Growth allocates and copies on the stream, so steps in flight keep the old table. `rows`, int32 [max_slots] on the
    device, is each slot's row of the table, -1 where it has none.
    """

    def __init__(self, width: int, dtype: torch.dtype, device: torch.device, max_slots: int) -> None:
        self.table = torch.zeros(0, width, dtype=dtype, device=device)
        self.rows = torch.full((max_slots,), -1, dtype=torch.int32, device=device)
        self._row_of: NDArray[np.int32] = np.full(max_slots, -1, np.int32)
        self._free: list[int] = []

    def assign(self, holders: Sequence[int], others: Sequence[int]) -> Ints:
        """Rows of the slots `holders`, new or old, with arbitrary contents; the slots `others` give theirs back."""
        changed = [slot for slot in others if self._row_of[slot] >= 0]
        self._free.extend(self._row_of[changed].tolist())
        self._row_of[changed] = -1
        wanting = [slot for slot in holders if self._row_of[slot] < 0]
        if len(self._free) < len(wanting):
            self._grow(len(wanting) - len(self._free))
        for slot in wanting:
            self._row_of[slot] = self._free.pop()
        changed += wanting
        if changed:
            packed = upload(np.stack([np.array(changed, np.int64), self._row_of[changed]]), self.table.device)
            self.rows.index_copy_(0, packed[0], packed[1].to(torch.int32))
        return self._row_of[list(holders)].astype(np.int64)

    def rows_of(self, slots: Ints) -> Tensor:
        """int64 [n]: rows of the table that belong to these slots, which have one."""
        return upload(self._row_of[slots].astype(np.int64), self.table.device)

    def _grow(self, missing: int) -> None:
        """To the power of two that has as many rows more, in one go: each allocation on a GPU costs a millisecond."""
        held = len(self.table)
        grown = self.table.new_zeros(1 << (held + missing - 1).bit_length(), self.table.shape[1])
        grown[:held] = self.table
        self.table = grown
        self._free.extend(range(held, len(grown)))
