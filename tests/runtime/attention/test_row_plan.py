"""How rows are bucketed and cut: plain numbers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from thranite.attention.group_plan import first_tokens
from thranite.attention.row_plan import QUERY_BLOCK, Row, bucket_rows, query_blocks, split_rows

CONTEXTS = st.lists(st.integers(1, 3000), min_size=1, max_size=64)
WINDOWS = st.none() | st.integers(1, 600)


@given(contexts=CONTEXTS, window=WINDOWS, block_size=st.sampled_from([1, 16, 32]))
def test_buckets_hold_every_row_once_with_little_padding(
    contexts: list[int], window: int | None, block_size: int
) -> None:
    rows = [Row(i, i, 1, context) for i, context in enumerate(contexts)]
    buckets = bucket_rows(rows, window, block_size)
    assert sorted(row.index for bucket in buckets for row in bucket) == list(range(len(rows)))
    for bucket in buckets:
        assert [row.index for row in bucket] == sorted(row.index for row in bucket)
        pages = [last - first + 1 for first, last in (row.pages(window, block_size) for row in bucket)]
        padding = sum(max(pages) - p for p in pages)
        assert padding <= max(4, 0.25 * max(pages) * len(pages))


def test_equal_rows_share_a_bucket() -> None:
    assert len(bucket_rows([Row(i, i, 1, 500 + i) for i in range(40)], None, 16)) == 1


@given(queries=st.integers(2, 2000), before=st.integers(0, 2000), window=WINDOWS)
def test_blocks_cover_every_query_and_the_keys_it_sees(queries: int, before: int, window: int | None) -> None:
    row = Row(0, 0, queries, before + queries)
    blocks = query_blocks(row, window)
    assert [q for block in blocks for q in range(block.start, block.stop)] == list(range(queries))
    for block in blocks:
        first, last = before + block.start, before + block.stop - 1
        assert block.stop - block.start <= QUERY_BLOCK
        assert block.keys_stop == last + 1
        assert block.keys_start == (0 if window is None else max(0, first - window + 1))
        assert block.reach == first - block.keys_start
        assert block.keys_start >= row.first_key(window)


def test_split_leaves_out_empty_rows() -> None:
    decodes, prefills = split_rows([0, 1, 1, 6], [9, 4, 7])
    assert decodes == [Row(0, 0, 1, 9)]
    assert prefills == [Row(2, 1, 5, 7)]


def test_first_tokens_of_pages() -> None:
    assert first_tokens([Row(0, 0, 1, 17), Row(1, 1, 1, 18), Row(2, 2, 40, 50)], 16) == [0, 8, 24, 40]
