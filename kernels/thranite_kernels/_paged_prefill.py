# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
"""Device code of `paged_prefill`: a plan kernel once a step, an attention kernel once a layer."""

import triton
import triton.language as tl

from ._paged import LOG2E, NO_SCORE, add_sink, shape_scores, tile_offsets, tile_pages

RECORD: tl.constexpr = tl.constexpr(8)
"""int32 fields of one work item: queries (0: no work), first query, slot, end of visible keys, position of the first
query; three unused. The last record is no item."""


@triton.jit(
    do_not_specialize=["rows", "items"],
    do_not_specialize_on_alignment=["slots_ptr", "context_ptr", "cu_q_ptr"],
)
def prefill_plan_kernel(
    slots_ptr,  # int32 [R]
    context_ptr,  # int32 [R]
    cu_q_ptr,  # int32 [R + 1]
    item_ptr,  # out int32 [items, RECORD]
    rows,
    items,
    BLOCK_Q: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """Cut each row's queries into blocks of BLOCK_Q; program r writes row r's items, the last one the unused ones."""
    row = tl.program_id(0)
    item = 0
    for start in range(0, row, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        inside = r < row
        queries = tl.load(cu_q_ptr + r + 1, mask=inside, other=0) - tl.load(cu_q_ptr + r, mask=inside, other=0)
        item += tl.sum((queries + BLOCK_Q - 1) // BLOCK_Q)
    if row == rows:
        for start in range(item, items, BLOCK_I):
            i = start + tl.arange(0, BLOCK_I)
            tl.store(item_ptr + i * RECORD, 0, mask=i < items)
            tl.store(item_ptr + i * RECORD + 1, 0, mask=i < items)
        # In the last record `hopper_prefill` counts in two fields, and reads the number of items in the third.
        tl.store(item_ptr + (items - 1) * RECORD + 2, item)
    else:
        slot = tl.load(slots_ptr + row)
        begin = tl.load(cu_q_ptr + row)
        queries = tl.load(cu_q_ptr + row + 1) - begin
        context = tl.where(slot >= 0, tl.load(context_ptr + row), 0)
        blocks = (queries + BLOCK_Q - 1) // BLOCK_Q
        for start in range(0, blocks, BLOCK_I):
            b = start + tl.arange(0, BLOCK_I)
            inside = b < blocks
            at = item_ptr + (item + b) * RECORD
            count = tl.minimum(queries - b * BLOCK_Q, BLOCK_Q)
            position = context - queries + b * BLOCK_Q
            tl.store(at, count, mask=inside)
            tl.store(at + 1, begin + b * BLOCK_Q, mask=inside)
            tl.store(at + 2, slot, mask=inside)
            tl.store(at + 3, tl.where(context > 0, position + count, 0), mask=inside)
            tl.store(at + 4, position, mask=inside)


@triton.jit
def _attend(
    acc,
    top,
    total,
    q,
    position,
    k_ptr,
    v_ptr,
    kv_desc,
    table_row,
    head,
    start_key,
    stop_key,
    first_key,
    end,
    window,
    stride_page,
    score_scale,
    cap_scale,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr,
    MASKED: tl.constexpr,
    TMA: tl.constexpr,
):
    """Online softmax over the tiles of keys [start_key, stop_key); unmasked tiles are visible to every query.

    No query sees a key before `first_key`. Pages there may be anybody's by now: what they hold must not meet a weight
    of 0.
    """
    d = tl.arange(0, BLOCK_D)
    pages = tile_pages(table_row, start_key, stop_key, BLOCK_SIZE, TILE)
    for start in range(start_key, stop_key, TILE):
        if TMA and not MASKED:
            k = kv_desc.load([pages, head, start % BLOCK_SIZE, 0]).reshape(TILE, BLOCK_D)
            v = kv_desc.load([pages, KV_HEADS + head, start % BLOCK_SIZE, 0]).reshape(TILE, BLOCK_D)
        else:
            at = tile_offsets(pages, start, stride_page, HEAD_DIM, BLOCK_SIZE, TILE)
            if MASKED:
                seen = (start + tl.arange(0, TILE)) < end
                if WINDOW:
                    seen = seen & (start + tl.arange(0, TILE) >= first_key)
                live = seen[:, None] & (d < HEAD_DIM)[None, :]
                k = tl.load(k_ptr + at[:, None], mask=live, other=0.0)
                v = tl.load(v_ptr + at[:, None], mask=live, other=0.0)
            elif HEAD_DIM < BLOCK_D:
                k = tl.load(k_ptr + at[:, None], mask=(d < HEAD_DIM)[None, :], other=0.0)
                v = tl.load(v_ptr + at[:, None], mask=(d < HEAD_DIM)[None, :], other=0.0)
            else:
                k = tl.load(k_ptr + at[:, None])
                v = tl.load(v_ptr + at[:, None])
        pages = tile_pages(table_row, start + TILE, stop_key, BLOCK_SIZE, TILE)
        scores = tl.dot(q, tl.trans(k).to(q.dtype), input_precision="ieee")
        scores = shape_scores(scores, score_scale, cap_scale, SOFTCAP)
        if MASKED:
            key = start + tl.arange(0, TILE)
            visible = key[None, :] <= position[:, None]
            if WINDOW:
                visible = visible & (key[None, :] > position[:, None] - window)
            scores = tl.where(visible, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        weights = tl.exp2(scores - new_top[:, None])
        keep = tl.exp2(top - new_top)
        total = total * keep + tl.sum(weights, axis=1)
        acc = acc * keep[:, None]
        acc = tl.dot(weights.to(q.dtype), v.to(q.dtype), acc, input_precision="ieee")
        top = new_top
    return acc, top, total


@triton.jit(do_not_specialize=["items", "window", "score_scale", "cap_scale"])
def paged_prefill_kernel(
    q_ptr,
    stride_q,  # [T, H, D], heads contiguous
    kv_ptr,
    stride_page,  # [pages, 2, KV_HEADS, BLOCK_SIZE, HEAD_DIM], dense in a page
    kv_desc,  # the same as tensor map [pages, 2 * KV_HEADS, BLOCK_SIZE, HEAD_DIM], or None
    table_ptr,
    stride_table,  # int32 [max_slots, max_blocks]
    sink_ptr,  # fp32 [H] or None
    out_ptr,
    stride_out,  # [T, H, D], heads contiguous
    item_ptr,  # int32 [items, RECORD]
    items,
    window,
    score_scale,
    cap_scale,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr,
    SINKS: tl.constexpr,
    TMA: tl.constexpr,
):
    """One program per (block of queries, kv head); tile rows are (token, head of the group) pairs.

    Items run from last to first: within a row the blocks that see most keys start first. Tiles outside the causal
    triangle and the window are skipped; only tiles on their edges are masked.
    """
    head = tl.program_id(0) % KV_HEADS
    record = item_ptr + (items - 1 - tl.program_id(0) // KV_HEADS) * RECORD
    queries = tl.load(record)
    q_begin = tl.load(record + 1)
    slot = tl.load(record + 2)
    end = tl.load(record + 3)
    first_position = tl.load(record + 4)
    if queries == 0:
        return

    m = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    token = m // GROUP
    q_live = token < queries
    q_head = head * GROUP + m % GROUP
    q_at = (q_begin + token).to(tl.int64) * stride_q + q_head * HEAD_DIM
    q_mask = q_live[:, None] & (d < HEAD_DIM)[None, :]
    q = tl.load(q_ptr + q_at[:, None] + d[None, :], mask=q_mask, other=0.0)
    position = first_position + token

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    top = tl.full([BLOCK_M], NO_SCORE, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    table_row = table_ptr + tl.maximum(slot, 0).to(tl.int64) * stride_table
    k_ptr = kv_ptr + head * (BLOCK_SIZE * HEAD_DIM) + d[None, :]
    v_ptr = k_ptr + KV_HEADS * BLOCK_SIZE * HEAD_DIM

    # Keys [lo, hi) cover what any query sees; every query sees all of [full_lo, full_hi).
    hi = end
    full_hi = tl.minimum((first_position + 1) // TILE * TILE, end)
    first_key = 0
    full_lo = 0
    if WINDOW:
        first_key = tl.maximum(first_position + 1 - window, 0)
        lo = first_key // TILE * TILE
        edge = (tl.maximum(end - window, 0) + TILE - 1) // TILE * TILE
        full_hi = tl.maximum(full_hi, lo)
        full_lo = tl.minimum(tl.maximum(edge, lo), full_hi)
        acc, top, total = _attend(
            acc, top, total, q, position, k_ptr, v_ptr, kv_desc, table_row, head, lo, full_lo, first_key, end,
            window, stride_page, score_scale, cap_scale, KV_HEADS, HEAD_DIM, BLOCK_D, BLOCK_SIZE, TILE, SOFTCAP, WINDOW,
            True, TMA,
        )  # fmt: skip
    acc, top, total = _attend(
        acc, top, total, q, position, k_ptr, v_ptr, kv_desc, table_row, head, full_lo, full_hi, first_key, end,
        window, stride_page, score_scale, cap_scale, KV_HEADS, HEAD_DIM, BLOCK_D, BLOCK_SIZE, TILE, SOFTCAP, WINDOW,
        False, TMA,
    )  # fmt: skip
    acc, top, total = _attend(
        acc, top, total, q, position, k_ptr, v_ptr, kv_desc, table_row, head, full_hi, hi, first_key, end,
        window, stride_page, score_scale, cap_scale, KV_HEADS, HEAD_DIM, BLOCK_D, BLOCK_SIZE, TILE, SOFTCAP, WINDOW,
        True, TMA,
    )  # fmt: skip

    if SINKS:
        acc, total = add_sink(acc, top, total, tl.load(sink_ptr + q_head).to(tl.float32) * LOG2E)
    acc = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    out_at = (q_begin + token).to(tl.int64) * stride_out + q_head * HEAD_DIM
    tl.store(out_ptr + out_at[:, None] + d[None, :], acc.to(out_ptr.dtype.element_ty), mask=q_mask)
