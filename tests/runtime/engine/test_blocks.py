"""The page pool as a state machine, and block tables over it."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
)

from tests.support.paged_executor import layout
from thranite.engine.blocks import BlockPool
from thranite.engine.kv_manager import BlockTable, KVCacheManager
from thranite.engine.plan import BlockUpdate

PAGES = 9


class PoolMachine(RuleBasedStateMachine):
    """Every page is referenced, free and empty, or free and cached; the model is a counter and a dict."""

    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(PAGES)
        self.refs: Counter[int] = Counter()
        self.content: dict[int, bytes] = {}

    @precondition(lambda self: self.pool.num_free > 0)
    @rule(target=held)
    def allocate(self) -> int:
        block = self.pool.allocate()
        assert block != 0
        assert self.refs[block] == 0
        self.refs[block] += 1
        self.content.pop(block, None)
        return block

    @rule(block=held, name=st.integers(0, 3))
    def register(self, block: int, name: int) -> None:
        if self.refs[block] == 0:
            return
        self.pool.register(block, (0, bytes([name])))
        if block not in self.content and bytes([name]) not in self.content.values():
            self.content[block] = bytes([name])

    @rule(target=held, name=st.integers(0, 3))
    def claim(self, name: int) -> int | MultipleResults[int]:
        block = self.pool.lookup((0, bytes([name])))
        assert block == next((b for b, content in self.content.items() if content == bytes([name])), None)
        if block is None:
            return multiple()
        self.pool.acquire(block)
        self.refs[block] += 1
        return block

    @rule(block=consumes(held))
    def release(self, block: int) -> None:
        self.pool.release(block)
        self.refs[block] -= 1

    @invariant()
    def integrity(self) -> None:
        self.pool.check_integrity(+self.refs)
        assert self.pool.num_used == sum(count > 0 for count in self.refs.values())


PoolMachine.TestCase.settings = hypothesis_settings(max_examples=150, stateful_step_count=60, deadline=None)
TestPool = PoolMachine.TestCase


def test_empty_pages_are_taken_before_cached_ones_and_cached_ones_in_release_order() -> None:
    pool = BlockPool(5)
    blocks = [pool.allocate() for _ in range(4)]
    for name, block in enumerate(blocks[:3]):
        pool.register(block, (0, bytes([name])))
    for block in (blocks[1], blocks[3], blocks[0], blocks[2]):
        pool.release(block)
    assert [pool.allocate() for _ in range(4)] == [blocks[3], blocks[1], blocks[0], blocks[2]]


def test_misuse_is_an_error() -> None:
    pool = BlockPool(2)
    block = pool.allocate()
    with pytest.raises(RuntimeError, match="empty pool"):
        pool.allocate()
    pool.release(block)
    with pytest.raises(RuntimeError, match="released more often"):
        pool.release(block)
    with pytest.raises(RuntimeError, match="block tables hold 1"):
        pool.check_integrity({block: 1})
    with pytest.raises(ValueError, match="null page"):
        BlockPool(1)


def test_the_proof_of_integrity_names_the_page() -> None:
    pool = BlockPool(6)
    held, cached, _ = (pool.allocate() for _ in range(3))
    pool.register(cached, (0, b"content"))
    pool.release(cached)
    references = {held: 1, 3: 1}
    pool.check_integrity(references)
    with pytest.raises(RuntimeError, match=f"page {held} has 1 references, block tables hold 2"):
        pool.check_integrity({**references, held: 2})
    for block in (-1, 6):
        with pytest.raises(RuntimeError, match=f"hold page {block} of 6"):
            pool.check_integrity({**references, block: 1})
    pool._keys[cached] = (0, b"other")
    with pytest.raises(RuntimeError, match=f"page {cached} is indexed under content it does not hold"):
        pool.check_integrity(references)
    pool._refs[held] = 0
    with pytest.raises(RuntimeError, match=f"page {held} with 0 references is not free"):
        pool.check_integrity({3: 1})
    pool._refs[held], pool._refs[4] = 1, 1
    with pytest.raises(RuntimeError, match="page 4 with 1 references is free"):
        pool.check_integrity({**references, 4: 1})
    pool.num_free = 1
    with pytest.raises(RuntimeError, match="3 pages on the free list, 1 counted"):
        pool.check_integrity(references)
    pool._next[cached] = cached
    with pytest.raises(RuntimeError, match=f"free list is broken at page {cached}"):
        pool.check_integrity(references)


def _fill(kv: KVCacheManager, tokens: list[int], salt: str = "") -> BlockTable:
    """A table whose tokens are all computed, step by step as a prefill of 8 a step would."""
    table = kv.new_table(salt)
    hit = kv.find_prefix(table, tokens)
    kv.claim_prefix(table, hit)
    computed = hit * kv.block_size
    while computed < len(tokens):
        kv.trim(table, computed)
        end = min(computed + 8, len(tokens))
        updates: list[BlockUpdate] = []
        kv.grow(table, 0, computed, end, updates, [])
        computed = end
        kv.commit(table, tokens, computed)
    return table


def test_prefix_hit_is_the_longest_valid_in_every_group() -> None:
    kv = KVCacheManager(layout(4, [None, 6]), 64, enable_prefix_caching=True)
    tokens = list(range(30))
    first = _fill(kv, tokens)
    kv.free(first)
    again = kv.new_table("")
    assert kv.find_prefix(again, tokens) == 7  # 28 of 30 tokens
    assert kv.find_prefix(kv.new_table(""), tokens[:28]) == 6  # one token always stays to compute
    assert kv.find_prefix(kv.new_table("other tenant"), tokens) == 0
    lost = kv.pool.lookup((1, again.hashes[5]))
    assert lost is not None
    kv.pool.acquire(lost)  # take the window group's block 5 away: only prefixes whose window avoids it stay valid
    kv.pool._forget(lost)
    assert kv.find_prefix(kv.new_table(""), tokens) == 5
    kv.pool.release(lost)


def test_window_groups_free_pages_behind_the_window() -> None:
    kv = KVCacheManager(layout(4, [None, 6]), 64, enable_prefix_caching=False)
    table = _fill(kv, list(range(40)))
    kv.trim(table, 40)
    assert len(table.groups[0]) == len(table.groups[1]) == 10
    assert table.kept_from == [0, 8]  # the query at 40 sees 35 … 40, of which 35 lies in block 8
    assert kv.pool.num_used == 12
    kv.check_integrity([table])
    kv.free(table)
    assert kv.pool.num_used == 0


def test_fork_shares_every_page_and_copies_the_one_written() -> None:
    kv = KVCacheManager(layout(4), 64, enable_prefix_caching=True)
    parent = _fill(kv, list(range(10)))
    children = [kv.fork(parent) for _ in range(2)]
    assert kv.pool.num_used == 3
    copies: list[tuple[int, int]] = []
    for table in (*children, parent):
        assert kv.blocks_to_grow(table, 10, 11) == (table is not parent)
        kv.grow(table, 0, 10, 11, [], copies)
    assert len(copies) == 2  # the last one left writes in place
    assert {source for source, _ in copies} == {parent.groups[0][2]}
    assert kv.pool.num_used == 5
    kv.check_integrity([parent, *children])
