"""The page pool: reference counts, a free list in least-recently-used order, and the content index of the prefix cache.

Every operation is O(1). A page is in exactly one of three states: referenced (`refs > 0`), free and empty, or free and
cached (its content can be claimed by hash until the page is allocated again). Free pages form an intrusive doubly
linked ring through a sentinel; empty ones are taken first, cached ones in the order they were released.
"""

from __future__ import annotations

from thranite.engine.plan import NULL_BLOCK

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
        listed = set()
        block = self._next[self._sentinel]
        while block != self._sentinel:
            if block in listed or not 0 < block < self.num_blocks:
                raise RuntimeError(f"free list is broken at page {block}")
            listed.add(block)
            block = self._next[block]
        if len(listed) != self.num_free:
            raise RuntimeError(f"{len(listed)} pages on the free list, {self.num_free} counted")
        for block in range(1, self.num_blocks):
            refs = self._refs[block]
            if refs != references.get(block, 0):
                raise RuntimeError(f"page {block} has {refs} references, block tables hold {references.get(block, 0)}")
            if (refs == 0) != (block in listed):
                raise RuntimeError(f"page {block} with {refs} references is {'' if block in listed else 'not '}free")
        for key, block in self._cached.items():
            if self._keys[block] != key:
                raise RuntimeError(f"page {block} is indexed under content it does not hold")
