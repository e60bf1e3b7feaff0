"""One KV group's share of a step: where keys and values go, and the work of its attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thranite.attention.base import AttentionBatch
from thranite.attention.masks import band_mask, range_mask
from thranite.attention.page_gather import PageGather
from thranite.attention.row_plan import QueryBlock, Row, bucket_rows, query_blocks


@dataclass(frozen=True, slots=True)
class DecodeWork:
    """A bucket of rows of one query each. `tokens`: None if they are all the batch's, in order.

    Of the gathered keys, `keys` (start, stop) take part; `mask` [R, 1, 1, stop - start] hides what some rows lack.
    """

    tokens: Tensor | None
    index: Tensor
    keys: tuple[int, int]
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class PrefillWork:
    """A row of several queries. `index`: None if its keys are all of this step, and need no gathering.

    `first_key`: position of the first gathered key. Each block comes with its mask [queries, keys].
    """

    token: int
    queries: int
    index: Tensor | None
    first_key: int
    blocks: tuple[tuple[QueryBlock, Tensor], ...]


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """`fresh_pages`: those whose first token this step writes."""

    write_pages: Tensor
    write_offsets: Tensor
    fresh_pages: Tensor | None
    decodes: tuple[DecodeWork, ...]
    prefills: tuple[PrefillWork, ...]


def plan_group(
    batch: AttentionBatch,
    group: int,
    gather: PageGather,
    window: int | None,
    decodes: Sequence[Row],
    prefills: Sequence[Row],
    *,
    dtype: torch.dtype,
    stored_exactly: bool,
) -> GroupPlan:
    """`dtype`: of queries. `stored_exactly`: the cache keeps keys and values as they are computed."""
    planner = GroupPlanner(batch, batch.block_tables[group], gather, window, dtype)
    slots = batch.slot_mappings[group]
    pages = slots // gather.block_size
    fresh = first_tokens([*decodes, *prefills], gather.block_size)
    buckets = bucket_rows(decodes, window, gather.block_size)
    return GroupPlan(
        write_pages=pages,
        write_offsets=slots % gather.block_size,
        fresh_pages=pages[fresh] if fresh else None,
        decodes=tuple(planner.decode(bucket) for bucket in buckets),
        prefills=tuple(planner.prefills(prefills, stored_exactly)),
    )


def first_tokens(rows: Sequence[Row], block_size: int) -> list[int]:
    """Indices of the tokens that stand first in a page."""
    found = []
    for row in rows:
        before = row.context - row.queries
        found += [row.token + i for i in range(-before % block_size, row.queries, block_size)]
    return found


class GroupPlanner:
    """Makes index and mask tensors of one group."""

    def __init__(
        self, batch: AttentionBatch, table: Tensor, gather: PageGather, window: int | None, dtype: torch.dtype
    ) -> None:
        self.batch, self.table, self.gather, self.window, self.dtype = batch, table, gather, window, dtype
        self.device = batch.positions.device

    def decode(self, rows: Sequence[Row]) -> DecodeWork:
        index, firsts = self._page_index(rows)
        seen = [
            (row.first_key(self.window) - first, row.context - first) for row, first in zip(rows, firsts, strict=True)
        ]
        start, stop = min(s for s, _ in seen), max(e for _, e in seen)
        mask = range_mask([(s - start, e - start) for s, e in seen], stop - start, self.dtype, self.device)
        tokens = [row.token for row in rows]
        whole = tokens == list(range(self.batch.positions.shape[0]))
        return DecodeWork(None if whole else torch.tensor(tokens, device=self.device), index, (start, stop), mask)

    def prefills(self, rows: Sequence[Row], stored_exactly: bool) -> list[PrefillWork]:
        cut = [query_blocks(row, self.window) for row in rows]
        blocks = [block for row_blocks in cut for block in row_blocks]
        if not blocks:
            return []
        height, reach = max(b.stop - b.start for b in blocks), max(b.reach for b in blocks)
        band = band_mask(height, reach, self.window, self.dtype, self.device)

        def mask(block: QueryBlock) -> Tensor:
            start = reach - block.reach
            return band[: block.stop - block.start, start : start + block.keys_stop - block.keys_start]

        works = []
        for row, row_blocks in zip(rows, cut, strict=True):
            index, first = None, 0
            if row.context > row.queries or not stored_exactly:
                index, (first,) = self._page_index([row])
            masked = tuple((block, mask(block)) for block in row_blocks)
            works.append(PrefillWork(row.token, row.queries, index, first, masked))
        return works

    def _page_index(self, rows: Sequence[Row]) -> tuple[Tensor, list[int]]:
        """Gather index of the rows' pages, padded with each row's last; position of each row's first gathered key."""
        spans = [row.pages(self.window, self.gather.block_size) for row in rows]
        width = max(last - first + 1 for first, last in spans)
        bounds = torch.tensor(spans, device=self.device)
        entries = torch.arange(width, device=self.device) + bounds[:, :1]
        entries = torch.minimum(entries, bounds[:, 1:])
        slots = self.batch.slots[torch.tensor([row.index for row in rows], device=self.device)]
        pages = self.table[slots[:, None], entries].to(torch.int64)
        return self.gather.index(pages), [first * self.gather.block_size for first, _ in spans]
