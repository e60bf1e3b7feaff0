"""Copies of pages in the order attention reads: one `index_select` a layer, moving whole (head, page) runs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PageGather:
    """Cuts a layer's pool into rows of `unit` elements, of which each page has `stride` and each run `parts`.

    A run is one head's keys (or values) of one page, `block_size * head_dim` contiguous elements. `parts` is 1 unless
    pages are padded to the size of another group's by something else than whole runs.
    """

    num_kv_heads: int
    block_size: int
    head_dim: int
    unit: int
    stride: int

    @classmethod
    def of(cls, pool: Tensor) -> PageGather:
        """pool [num_blocks, 2, kv_heads, block_size, head_dim], contiguous within a page."""
        _, _, heads, block_size, head_dim = pool.shape
        unit = math.gcd(pool.stride(0), block_size * head_dim)
        return cls(heads, block_size, head_dim, unit, pool.stride(0) // unit)

    @property
    def parts(self) -> int:
        return self.block_size * self.head_dim // self.unit

    def index(self, pages: Tensor) -> Tensor:
        """pages int64 [R, P] → int64 [2 * R * kv_heads * P * parts], the rows that `gather` copies."""
        runs = torch.arange(2 * self.num_kv_heads * self.parts, device=pages.device)
        runs = runs.view(2, 1, self.num_kv_heads, 1, self.parts)
        return (pages[None, :, None, :, None] * self.stride + runs).view(-1)

    def gather(self, pool: Tensor, index: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
        """Keys and values [R, kv_heads, P * block_size, head_dim], contiguous."""
        rows = pool.as_strided((pool.shape[0] * self.stride, self.unit), (self.unit, 1))
        copied = rows.index_select(0, index).view(2, num_rows, self.num_kv_heads, -1, self.head_dim)
        return copied[0], copied[1]
