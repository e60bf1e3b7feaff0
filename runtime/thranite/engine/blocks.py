"""The page pool: reference counts, a free list in least-recently-used order, and the content index of the prefix cache.

Every operation is O(1). A page is in exactly one of three states: referenced (`refs > 0`), free and empty, or free and
cached (its content can be claimed by hash until the page is allocated again). Free pages form an intrusive doubly
linked ring through a sentinel; empty ones are taken first, cached ones in the order they were released.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import not_
from typing import TypeVar

from thranite.engine.plan import NULL_BLOCK

T = TypeVar("T")
BlockKey = tuple[int, bytes]  # KV group, chained hash of all tokens up to the block's end


class BlockPool:
    """Owns pages 1 … num_blocks - 1; page 0 is the null page and never handed out."""

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 2:
            raise ValueError(f"a pool needs the null page and one more, got {num_blocks}")
        self.num_blocks = num_blocks
        self.num_free = num_blocks - 1
        self._refs = [0] * num_blocks
        self._refs[NULL_BLOCK] = 1
        self._keys: list[BlockKey | None] = [None] * num_blocks
        self._cached: dict[BlockKey, int] = {}
        self._sentinel = num_blocks
        self._next = [i + 1 for i in range(num_blocks)] + [1]
        self._prev = [i - 1 for i in range(num_blocks)] + [num_blocks - 1]
        self._prev[1] = self._sentinel

    @property
    def num_used(self) -> int:
        """Pages held by unfinished sequences."""
        return self.num_blocks - 1 - self.num_free

    def allocate(self) -> int:
        """Take the page at the list's head with one reference; its cached content is forgotten."""
        block = self._next[self._sentinel]
        if block == self._sentinel:
            raise RuntimeError("allocate from an empty pool: the caller did not check num_free")
        self._unlink(block)
        self._forget(block)
        self._refs[block] = 1
        return block

    def acquire(self, block: int) -> None:
        """Add a reference to a page that is referenced or cached."""
        if self._refs[block] == 0:
            self._unlink(block)
        self._refs[block] += 1

    def release(self, block: int) -> None:
        """Drop a reference; at none the page is free: cached content goes to the tail, an empty page to the head."""
        refs = self._refs[block] - 1
        if refs < 0:
            raise RuntimeError(f"page {block} released more often than acquired")
        self._refs[block] = refs
        if refs == 0:
            self._link(block, at_head=self._keys[block] is None)

    def refs(self, block: int) -> int:
        return self._refs[block]

    def lookup(self, key: BlockKey) -> int | None:
        """The page that holds this content, if any."""
        return self._cached.get(key)

    def register(self, block: int, key: BlockKey) -> None:
        """Index a full page by its content. Of two pages with the same content the first stays indexed."""
        if self._keys[block] is None and key not in self._cached:
            self._keys[block] = key
            self._cached[key] = block

    def clear_cache(self) -> None:
        """Forget all cached content; references stay."""
        self._keys = [None] * self.num_blocks
        self._cached.clear()

    def _forget(self, block: int) -> None:
        key = self._keys[block]
        if key is not None:
            del self._cached[key]
            self._keys[block] = None

    def _unlink(self, block: int) -> None:
        before, after = self._prev[block], self._next[block]
        self._next[before] = after
        self._prev[after] = before
        self.num_free -= 1

    def _link(self, block: int, *, at_head: bool) -> None:
        before = self._sentinel if at_head else self._prev[self._sentinel]
        after = self._next[before]
        self._next[before] = self._prev[after] = block
        self._prev[block], self._next[block] = before, after
        self.num_free += 1

    def check_integrity(self, references: dict[int, int]) -> None:
        """Prove ownership: `references` counts each page in all block tables. Raises RuntimeError at the first lie."""
        listed = self._listed()
        if sum(listed) != self.num_free:
            raise RuntimeError(f"{sum(listed)} pages on the free list, {self.num_free} counted")
        held = [0] * self.num_blocks
        held[NULL_BLOCK] = 1
        for block, count in references.items():
            if not 0 <= block < self.num_blocks:
                raise RuntimeError(f"block tables hold page {block} of {self.num_blocks}")
            held[block] = count
        for block, refs, expected in _differing(self._refs, held):
            raise RuntimeError(f"page {block} has {refs} references, block tables hold {expected}")
        for block, free, _ in _differing(listed, bytes(map(not_, held))):
            raise RuntimeError(f"page {block} with {held[block]} references is {'' if free else 'not '}free")
        indexed = list(self._cached.values())
        for place, *_ in _differing([self._keys[block] for block in indexed], list(self._cached)):
            raise RuntimeError(f"page {indexed[place]} is indexed under content it does not hold")

    def _listed(self) -> bytes:
        """By page: 1 if it is on the free list."""
        listed, following, block = bytearray(self.num_blocks), self._next, self._next[self._sentinel]
        while block != self._sentinel:
            if not 0 < block < self.num_blocks or listed[block]:
                raise RuntimeError(f"free list is broken at page {block}")
            listed[block] = 1
            block = following[block]
        return bytes(listed)


def _differing(found: Sequence[T], expected: Sequence[T]) -> Iterator[tuple[int, T, T]]:
    """Places where two sequences of one type differ, with both values. As a rule one comparison finds none."""
    if found != expected:
        yield from ((place, a, b) for place, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b)
