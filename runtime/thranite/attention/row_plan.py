"""Which rows of a batch attend together, and to which keys: plain numbers, no tensors.

Rows of one query (decode) are gathered together in buckets of similar context; rows of several queries (prefill) go
one by one, in blocks of queries, so that a block multiplies only keys that some query of it sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

QUERY_BLOCK = 256  # queries a prefill block
PADDING_SHARE = 0.25  # of a bucket's pages that may be padding before another bucket pays
PADDING_PAGES = 4  # padding that never pays for another bucket


@dataclass(frozen=True, slots=True)
class Row:
    """`queries` tokens from `token` on, the last of a context of `context` keys; row `index` of the batch."""

    index: int
    token: int
    queries: int
    context: int

    def first_key(self, window: int | None) -> int:
        """The first key that the row's first query sees."""
        return 0 if window is None else max(0, self.context - self.queries - window + 1)

    def pages(self, window: int | None, block_size: int) -> tuple[int, int]:
        """First and last entry of the block table that the row reads."""
        return self.first_key(window) // block_size, (self.context - 1) // block_size


@dataclass(frozen=True, slots=True)
class QueryBlock:
    """Queries `start` to `stop` of a row's tokens, and the keys (positions `keys_start` to `keys_stop`) they see."""

    start: int
    stop: int
    keys_start: int
    keys_stop: int
    reach: int  # keys before the first query's own


def split_rows(query_starts: Sequence[int], contexts: Sequence[int]) -> tuple[list[Row], list[Row]]:
    """Decode rows and prefill rows; rows without queries take no part."""
    rows = [
        Row(i, start, stop - start, context)
        for i, (start, stop, context) in enumerate(zip(query_starts, query_starts[1:], contexts, strict=False))
        if stop > start
    ]
    return [row for row in rows if row.queries == 1], [row for row in rows if row.queries > 1]


def bucket_rows(rows: Sequence[Row], window: int | None, block_size: int) -> list[list[Row]]:
    """Decode rows in buckets whose padding to the bucket's longest row stays small; batch order within a bucket."""

    def num_pages(row: Row) -> int:
        first, last = row.pages(window, block_size)
        return last - first + 1

    buckets: list[list[Row]] = []
    longest = padding = 0
    for row in sorted(rows, key=num_pages, reverse=True):
        pages = num_pages(row)
        padding += longest - pages
        if not buckets or padding > max(PADDING_PAGES, PADDING_SHARE * longest * len(buckets[-1])):
            buckets.append([])
            longest, padding = pages, 0
        buckets[-1].append(row)
    return [sorted(bucket, key=lambda row: row.index) for bucket in buckets]


def query_blocks(row: Row, window: int | None) -> list[QueryBlock]:
    """Cut a prefill row's queries; positions count from the row's first token."""
    before = row.context - row.queries
    blocks = []
    for start in range(0, row.queries, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, row.queries)
        first = before + start
        keys_start = 0 if window is None else max(0, first - window + 1)
        blocks.append(QueryBlock(start, stop, keys_start, before + stop, first - keys_start))
    return blocks
