"""Block tables of sequences over all KV groups: growing, sharing, copying on write, freeing behind windows, reuse.

A sequence's table in a group has one entry a block of tokens; entries before `kept_from` were freed behind the window
and read NULL_BLOCK. All groups have the same block size, so entry i stands for the same tokens in each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from thranite.engine import prefix_hash
from thranite.engine.blocks import BlockPool
from thranite.engine.kv_groups import KVLayout
from thranite.engine.plan import NULL_BLOCK, BlockUpdate


class BlockTable:
    """The pages of one sequence. Written by KVCacheManager alone."""

    __slots__ = ("groups", "hashes", "kept_from", "registered", "salt_root")

    def __init__(self, num_groups: int, salt_root: bytes) -> None:
        self.groups: list[list[int]] = [[] for _ in range(num_groups)]
        self.kept_from = [0] * num_groups
        self.hashes: list[bytes] = []
        self.registered = 0  # leading blocks whose content is indexed
        self.salt_root = salt_root

    @property
    def num_blocks(self) -> int:
        return len(self.groups[0])


class KVCacheManager:
    """The only writer of block tables and of the pool."""

    def __init__(self, layout: KVLayout, num_blocks: int, *, enable_prefix_caching: bool) -> None:
        self.layout = layout
        self.block_size = layout.block_size
        self.pool = BlockPool(num_blocks)
        self._windows = [group.window for group in layout.groups]
        self._has_windows = any(window is not None for window in self._windows)
        self._caching = enable_prefix_caching

    def new_table(self, salt: str) -> BlockTable:
        return BlockTable(len(self._windows), prefix_hash.root(salt))

    # --- prefix reuse

    def find_prefix(self, table: BlockTable, tokens: Sequence[int]) -> int:
        """Blocks of the longest cached prefix that is valid in every group. At least one token stays to compute."""
        if not self._caching:
            return 0
        prefix_hash.extend(table.hashes, table.salt_root, tokens, self.block_size)
        length = (len(tokens) - 1) // self.block_size
        for group, window in enumerate(self._windows):
            if window is None:
                length = self._leading_hits(group, table.hashes, length)
        while True:
            before = length
            for group, window in enumerate(self._windows):
                if window is not None:
                    length = self._window_hits(group, window, table.hashes, length)
            if length == before:
                return length

    def _leading_hits(self, group: int, hashes: Sequence[bytes], limit: int) -> int:
        for index in range(limit):
            if self.pool.lookup((group, hashes[index])) is None:
                return index
        return limit

    def _window_hits(self, group: int, window: int, hashes: Sequence[bytes], limit: int) -> int:
        """Largest length ≤ limit (blocks) whose last blocks, as many as the window sees, are all cached."""
        index = length = limit
        while index > self._first_kept(length * self.block_size, window):
            index -= 1
            if self.pool.lookup((group, hashes[index])) is None:
                length = index
        return length

    def _first_kept(self, computed: int, window: int | None) -> int:
        """First block that the query at position `computed` (and any later one) still sees."""
        return 0 if window is None else max(computed - window + 1, 0) // self.block_size

    def debt(self, table: BlockTable, num_tokens: int, chunk: int, hit: int | None = None) -> int:
        """Pages still to take until `num_tokens` are computed: beyond those held, or beyond `hit` blocks to claim."""
        total = 0
        for index, group in enumerate(self.layout.groups):
            if hit is None:
                held = len(table.groups[index]) - table.kept_from[index]
            else:
                held = hit - self._first_kept(hit * self.block_size, group.window)
            total += max(group.peak_blocks(num_tokens, self.block_size, chunk) - held, 0)
        return total

    def free_after_prefix(self, table: BlockTable, length: int) -> int:
        """Free pages left if the first `length` cached blocks were claimed."""
        claimed = 0
        for group, window in enumerate(self._windows):
            for index in range(self._first_kept(length * self.block_size, window), length):
                block = self.pool.lookup((group, table.hashes[index]))
                claimed += block is not None and self.pool.refs(block) == 0
        return self.pool.num_free - claimed

    def claim_prefix(self, table: BlockTable, length: int) -> None:
        """Make the first `length` blocks of an empty table those found by `find_prefix`."""
        for group, window in enumerate(self._windows):
            first = self._first_kept(length * self.block_size, window)
            table.kept_from[group] = first
            blocks = [NULL_BLOCK] * first
            for index in range(first, length):
                block = self.pool.lookup((group, table.hashes[index]))
                if block is None:
                    raise RuntimeError(f"block {index} of group {group} vanished between look-up and claim")
                self.pool.acquire(block)
                blocks.append(block)
            table.groups[group] = blocks
        table.registered = length

    # --- growth

    def blocks_to_grow(self, table: BlockTable, start: int, end: int) -> int:
        """Pages `grow` would take for writing positions start … end - 1."""
        needed = (-(-end // self.block_size) - table.num_blocks) * len(self._windows)
        if start % self.block_size and start // self.block_size < table.num_blocks:
            refs = self.pool.refs
            needed += sum(refs(group[start // self.block_size]) > 1 for group in table.groups)
        return needed

    def grow(
        self,
        table: BlockTable,
        slot: int,
        start: int,
        end: int,
        updates: list[BlockUpdate],
        copies: list[tuple[int, int]],
    ) -> None:
        """Make positions start … end - 1 writable; the caller checked `blocks_to_grow` against the pool.

        New entries go to `updates`; a shared page under `start` is replaced and its copy goes to `copies`.
        """
        size, have = self.block_size, table.num_blocks
        first = start // size
        shared = start % size != 0 and first < have
        want = -(-end // size)
        for group, blocks in enumerate(table.groups):
            if shared and self.pool.refs(blocks[first]) > 1:
                fresh = self.pool.allocate()
                copies.append((blocks[first], fresh))
                self.pool.release(blocks[first])
                blocks[first] = fresh
                updates.append(BlockUpdate(group, slot, first, (fresh,)))
            if want > have:
                new = [self.pool.allocate() for _ in range(want - have)]
                blocks.extend(new)
                updates.append(BlockUpdate(group, slot, have, new))

    def trim(self, table: BlockTable, computed: int) -> None:
        """Free the pages that no query from position `computed` on will see."""
        if not self._has_windows:
            return
        for group, window in enumerate(self._windows):
            if window is None:
                continue
            blocks, kept = table.groups[group], table.kept_from[group]
            first = min(self._first_kept(computed, window), len(blocks))
            for index in range(kept, first):
                self.pool.release(blocks[index])
                blocks[index] = NULL_BLOCK
            table.kept_from[group] = max(first, kept)

    def commit(self, table: BlockTable, tokens: Sequence[int], computed: int) -> None:
        """Index the full blocks among the first `computed` of the known `tokens` for reuse."""
        if not self._caching:
            return
        full = min(computed, len(tokens)) // self.block_size
        if full <= table.registered:
            return
        if len(table.hashes) < full:
            prefix_hash.extend(table.hashes, table.salt_root, tokens, self.block_size)
        for group, blocks in enumerate(table.groups):
            for index in range(max(table.registered, table.kept_from[group]), full):
                self.pool.register(blocks[index], (group, table.hashes[index]))
        table.registered = full

    # --- sharing and the end

    def fork(self, parent: BlockTable) -> BlockTable:
        """A table that shares every page of `parent`; a page is copied when either first writes into it."""
        child = BlockTable(len(self._windows), parent.salt_root)
        child.groups = [list(blocks) for blocks in parent.groups]
        child.kept_from = list(parent.kept_from)
        child.hashes = list(parent.hashes)
        child.registered = parent.registered
        for group, blocks in enumerate(child.groups):
            for block in blocks[child.kept_from[group] :]:
                self.pool.acquire(block)
        return child

    def updates_of(self, table: BlockTable, slot: int) -> list[BlockUpdate]:
        """The whole table, for a slot that starts."""
        return [BlockUpdate(group, slot, 0, tuple(blocks)) for group, blocks in enumerate(table.groups) if blocks]

    def free(self, table: BlockTable) -> None:
        """Release every page, the last first, so that prefixes stay cached longest. Hashes are kept for a return."""
        for group, blocks in enumerate(table.groups):
            for index in range(len(blocks) - 1, table.kept_from[group] - 1, -1):
                self.pool.release(blocks[index])
            table.groups[group] = []
            table.kept_from[group] = 0
        table.registered = 0

    def forget_prefixes(self) -> None:
        """The pages' content is void."""
        self.pool.clear_cache()

    def check_integrity(self, tables: Iterable[BlockTable]) -> None:
        """Prove that the pool's counts are those of `tables`, which must be all that hold pages."""
        references: Counter[int] = Counter()
        for table in tables:
            for group, blocks in enumerate(table.groups):
                if any(blocks[: table.kept_from[group]]) or NULL_BLOCK in blocks[table.kept_from[group] :]:
                    raise RuntimeError("a block table holds a freed page, or lacks one")
                references.update(blocks[table.kept_from[group] :])
        self.pool.check_integrity(references)
