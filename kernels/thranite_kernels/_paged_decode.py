# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
"""Device code of `paged_decode`: a plan kernel once a step, an attention kernel once a layer."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ._paged import LOG2E, NO_SCORE, add_sink, shape_scores, tile_offsets, tile_pages

RECORD: tl.constexpr = tl.constexpr(8)
"""int32 fields of one work item: splits of its row (0: no work), this split, slot, first key, end key, context, first
query, first partial result of the row. The number of queries is in the upper half of the second field."""


@triton.jit
def _row_tiles(slot, context, queries, window, TILE: tl.constexpr, WINDOW: tl.constexpr):
    """First tile and number of tiles that the row's queries can see; none for padding."""
    first = 0 * context
    if WINDOW:
        first = tl.maximum(context - queries + 1 - window, 0) // TILE
    live = (slot >= 0) & (context > 0)
    return first, tl.where(live, (context + TILE - 1) // TILE - first, 0)


@triton.jit
def _tiles_of_rows(
    slots_ptr, context_ptr, cu_q_ptr, r, rows, window, TILE: tl.constexpr, WINDOW: tl.constexpr, RAGGED: tl.constexpr
):
    """Tiles of rows `r`, none beyond the last."""
    inside = r < rows
    context = tl.load(context_ptr + r, mask=inside, other=0)
    slot = tl.load(slots_ptr + r, mask=inside, other=-1)
    queries = 1
    if RAGGED:
        queries = tl.load(cu_q_ptr + r + 1, mask=inside, other=0) - tl.load(cu_q_ptr + r, mask=inside, other=0)
    _, tiles = _row_tiles(slot, context, queries, window, TILE, WINDOW)
    return tiles


@triton.jit
def _splits(tiles, piece, whole_tiles):
    """Programs of a row, none for padding; and the tiles of the longest."""
    splits = tl.where(tiles <= whole_tiles, tl.minimum(tiles, 1), (tiles + piece - 1) // piece)
    return splits, (tiles + splits - 1) // tl.maximum(splits, 1)


@triton.jit(
    do_not_specialize=["rows", "items", "shares", "window", "min_tiles", "whole_tiles", "coarse", "long_tiles"],
    do_not_specialize_on_alignment=["slots_ptr", "context_ptr", "cu_q_ptr"],
)
def decode_plan_kernel(
    slots_ptr,  # int32 [R]
    context_ptr,  # int32 [R]
    cu_q_ptr,  # int32 [R + 1], or None: one query a row
    item_ptr,  # out int32 [items, RECORD]
    rows,
    items,
    shares,
    window,
    min_tiles,
    whole_tiles,
    coarse,
    long_tiles,
    TILE: tl.constexpr,
    WINDOW: tl.constexpr,
    RAGGED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """Cut the batch's tiles into about `shares` equal pieces; program r writes the items of row r.

    With total tiles n, a piece is c = max(min_tiles, ceil(n / shares)) tiles and a row of t tiles is cut into
    ceil(t / c) near-equal splits, one if t <= whole_tiles. Pieces of fewer than `long_tiles` are larger, if need be as
    large as `coarse` shares make them: there, combining costs more than even shares save. So are those of a row alone,
    which is cut evenly whatever the shares are. Hence items <= rows + shares and partial results <= 2 shares, whatever
    the lengths are. Padding has no tiles, so it has no items and changes nobody's cut.

    Rows with the longest splits have the first items: programs start in about that order as others end, and those that
    end last should be short (Graham: "Bounds on multiprocessing timing anomalies", 1969).
    """
    row = tl.program_id(0)
    total = 0
    live = 0
    for start in range(0, rows, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        tiles = _tiles_of_rows(slots_ptr, context_ptr, cu_q_ptr, r, rows, window, TILE, WINDOW, RAGGED)
        total += tl.sum(tiles)
        live += tl.sum((tiles > 0).to(tl.int32))
    piece = tl.maximum((total + shares - 1) // shares, min_tiles)
    coarsest = (total + coarse - 1) // coarse
    piece = tl.maximum(piece, tl.where((live == 1) & (long_tiles > 0), coarsest, tl.minimum(coarsest, long_tiles)))
    begin = tl.minimum(row, rows - 1)
    context = tl.load(context_ptr + begin)
    slot = tl.load(slots_ptr + begin)
    queries = 1
    if RAGGED:
        q_begin = tl.load(cu_q_ptr + begin)
        queries = tl.load(cu_q_ptr + begin + 1) - q_begin
        begin = q_begin
    first, tiles = _row_tiles(slot, context, queries, window, TILE, WINDOW)
    splits, longest = _splits(tiles, piece, whole_tiles)
    item = 0
    part = 0
    used = 0
    for start in range(0, rows, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        other = _tiles_of_rows(slots_ptr, context_ptr, cu_q_ptr, r, rows, window, TILE, WINDOW, RAGGED)
        other_splits, other_longest = _splits(other, piece, whole_tiles)
        before = (other_longest > longest) | ((other_longest == longest) & (r < row))
        used += tl.sum(other_splits)
        item += tl.sum(tl.where(before, other_splits, 0))
        part += tl.sum(tl.where((r < row) & (other_splits > 1), other_splits, 0))
    if row == rows:
        for start in range(used, items, BLOCK_I):
            i = start + tl.arange(0, BLOCK_I)
            tl.store(item_ptr + i * RECORD, 0, mask=i < items)
    else:
        for start in range(0, splits, BLOCK_I):
            s = start + tl.arange(0, BLOCK_I)
            inside = s < splits
            at = item_ptr + (item + s) * RECORD
            end = tl.minimum((first + tiles * (s + 1) // splits) * TILE, context)
            tl.store(at, splits, mask=inside)
            tl.store(at + 1, s + queries * 65536, mask=inside)
            tl.store(at + 2, slot, mask=inside)
            tl.store(at + 3, (first + tiles * s // splits) * TILE, mask=inside)
            tl.store(at + 4, end, mask=inside)
            tl.store(at + 5, context, mask=inside)
            tl.store(at + 6, begin, mask=inside)
            tl.store(at + 7, part, mask=inside)


@triton.jit
def _fetch_ahead(
    kv_ptr, stride_page, table_row, start, end, head,
    KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Ask L2 for a tile's keys and values. All writes go there: what is written meanwhile is read as it was written."""
    n = tl.arange(0, 2 * TILE)
    token = start + n % TILE
    page = tl.load(table_row + token // BLOCK_SIZE, mask=token < end, other=0, cache_modifier=".cg").to(tl.int64)
    inner = ((n // TILE) * KV_HEADS + head) * BLOCK_SIZE + token % BLOCK_SIZE
    at = (kv_ptr + page * stride_page + inner * HEAD_DIM).to(tl.int64)
    size: tl.constexpr = HEAD_DIM * kv_ptr.dtype.element_ty.primitive_bitwidth // 8
    tl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.u32 p, $3, 0; @p cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0; }",
        "=r,l,r,r",
        [at & -16, tl.full(n.shape, size, tl.int32), (token < end).to(tl.int32)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit(do_not_specialize=["window", "score_scale", "cap_scale", "ahead"])
def paged_decode_kernel(
    q_ptr,
    stride_q,  # [T, H, D], heads contiguous
    kv_ptr,
    stride_page,  # [pages, 2, KV_HEADS, BLOCK_SIZE, HEAD_DIM], dense in a page
    table_ptr,
    stride_table,  # int32 [max_slots, max_blocks]
    sink_ptr,  # fp32 [H] or None
    out_ptr,
    stride_out,  # [T, H, D], heads contiguous
    item_ptr,  # int32 [items, RECORD]
    part_ptr,  # fp32 [parts, KV_HEADS * M_BLOCKS, BLOCK_R, HEAD_DIM]
    lse_ptr,  # fp32 [parts, KV_HEADS * M_BLOCKS, BLOCK_R]
    count_ptr,  # int32 [parts, KV_HEADS * M_BLOCKS], zero between launches
    window,
    score_scale,
    cap_scale,
    ahead,  # tiles asked of L2 before the wait
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    MAX_Q: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr,
    SINKS: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program per (item, block of query rows, kv head); query rows are (token, head of the group) pairs.

    A row with one split is written directly. Otherwise each split stores its normalised result and log-sum-exp, and
    the split that arrives last combines them in order, so the result does not depend on who was last.
    """
    M_BLOCKS: tl.constexpr = (GROUP * MAX_Q + BLOCK_M - 1) // BLOCK_M
    head = tl.program_id(0) % KV_HEADS
    m_block = (tl.program_id(0) // KV_HEADS) % M_BLOCKS
    record = item_ptr + (tl.program_id(0) // (KV_HEADS * M_BLOCKS)) * RECORD
    if PDL:
        gdc_launch_dependents()
    # Read before the wait: work lists and tables are written by kernels without PDL alone, which have ended when any
    # later kernel starts (docs/kernels.md, "Early starts"). Past L1, which may hold an earlier step's lines.
    splits = tl.load(record, cache_modifier=".cg")
    packed = tl.load(record + 1, cache_modifier=".cg")
    slot = tl.load(record + 2, cache_modifier=".cg")
    begin = tl.load(record + 3, cache_modifier=".cg")
    end = tl.load(record + 4, cache_modifier=".cg")
    context = tl.load(record + 5, cache_modifier=".cg")
    q_begin = tl.load(record + 6, cache_modifier=".cg")
    first_part = tl.load(record + 7, cache_modifier=".cg")
    if splits == 0:
        # Without a wait, so that the next kernel has this place at once. It must not begin before what this one follows
        # has ended, whether there is any work or not: the first item's programs always wait.
        if PDL:  # noqa: SIM102 - a constant must decide alone: other targets have no such instruction
            if tl.program_id(0) < KV_HEADS * M_BLOCKS:
                gdc_wait()
        return
    split = packed % 65536
    queries = packed // 65536
    table_row = table_ptr + tl.maximum(slot, 0).to(tl.int64) * stride_table
    pages = tile_pages(table_row, begin, end, BLOCK_SIZE, TILE, ".cg")
    if PDL:
        for start in range(begin, tl.minimum(end, begin + ahead * TILE), TILE):
            _fetch_ahead(kv_ptr, stride_page, table_row, start, end, head, KV_HEADS, HEAD_DIM, BLOCK_SIZE, TILE)
        gdc_wait()

    m = m_block * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    token = m // GROUP
    q_live = token < queries
    q_head = head * GROUP + m % GROUP
    q_at = (q_begin + token).to(tl.int64) * stride_q + q_head * HEAD_DIM
    q_mask = q_live[:, None] & (d < HEAD_DIM)[None, :]
    q = tl.load(q_ptr + q_at[:, None] + d[None, :], mask=q_mask, other=0.0)
    position = context - queries + token

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    top = tl.full([BLOCK_M], NO_SCORE, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    k_ptr = kv_ptr + head * (BLOCK_SIZE * HEAD_DIM) + d[None, :]
    v_ptr = k_ptr + KV_HEADS * BLOCK_SIZE * HEAD_DIM
    for start in range(begin, end, TILE):
        key = start + tl.arange(0, TILE)
        seen = key < end
        if WINDOW:  # pages behind it may be anybody's by now: what they hold must not meet a weight of 0
            seen = seen & (key > context - queries - window)
        live = seen[:, None] & (d < HEAD_DIM)[None, :]
        at = tile_offsets(pages, start, stride_page, HEAD_DIM, BLOCK_SIZE, TILE)
        pages = tile_pages(table_row, start + TILE, end, BLOCK_SIZE, TILE)
        k = tl.load(k_ptr + at[:, None], mask=live, other=0.0)
        v = tl.load(v_ptr + at[:, None], mask=live, other=0.0)
        scores = tl.dot(q, tl.trans(k).to(q.dtype), input_precision="ieee")
        scores = shape_scores(scores, score_scale, cap_scale, SOFTCAP)
        visible = (key < end)[None, :]
        if MAX_Q > 1:
            visible = visible & (key[None, :] <= position[:, None])
        if WINDOW:
            visible = visible & (key[None, :] > position[:, None] - window)
        scores = tl.where(visible, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        weights = tl.exp2(scores - new_top[:, None])
        keep = tl.exp2(top - new_top)
        total = total * keep + tl.sum(weights, axis=1)
        acc = tl.dot(weights.to(q.dtype), v.to(q.dtype), acc * keep[:, None], input_precision="ieee")
        top = new_top

    out_at = (q_begin + token).to(tl.int64) * stride_out + q_head * HEAD_DIM
    if splits == 1:
        if SINKS:
            acc, total = add_sink(acc, top, total, tl.load(sink_ptr + q_head).to(tl.float32) * LOG2E)
        acc = acc / tl.where(total > 0.0, total, 1.0)[:, None]
        tl.store(out_ptr + out_at[:, None] + d[None, :], acc.to(out_ptr.dtype.element_ty), mask=q_mask)
    else:
        blocks: tl.constexpr = KV_HEADS * M_BLOCKS
        block = head * M_BLOCKS + m_block
        local = tl.arange(0, BLOCK_M)
        kept = local < BLOCK_R
        part_row = ((first_part + split) * blocks + block).to(tl.int64) * BLOCK_R + local
        acc = acc / tl.where(total > 0.0, total, 1.0)[:, None]
        lse = tl.where(total > 0.0, top + tl.log2(tl.where(total > 0.0, total, 1.0)), float("-inf"))
        part_mask = kept[:, None] & (d < HEAD_DIM)[None, :]
        tl.store(part_ptr + part_row[:, None] * HEAD_DIM + d[None, :], acc, mask=part_mask)
        tl.store(lse_ptr + part_row, lse, mask=kept)
        # Every thread's stores must be ordered before the one thread that counts them.
        tl.debug_barrier()
        counter = count_ptr + first_part * blocks + block
        if tl.atomic_add(counter, 1, sem="acq_rel") == splits - 1:
            tl.store(counter, 0)
            _combine(
                part_ptr,
                lse_ptr,
                sink_ptr,
                out_ptr,
                stride_out,
                first_part,
                splits,
                block,
                blocks,
                m_block * BLOCK_M,
                head,
                q_begin,
                queries,
                GROUP,
                HEAD_DIM,
                BLOCK_D,
                BLOCK_R,
                BLOCK_S,
                SINKS,
            )


@triton.jit
def _combine(
    part_ptr,
    lse_ptr,
    sink_ptr,
    out_ptr,
    stride_out,
    first_part,
    splits,
    block,
    blocks,
    first_m,
    head,
    q_begin,
    queries,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
    SINKS: tl.constexpr,
):
    """out = sum_s 2^(lse_s - max) o_s / sum_s 2^(lse_s - max) over a row's splits, BLOCK_S of them at a time."""
    r = tl.arange(0, BLOCK_R)
    d = tl.arange(0, BLOCK_D)
    acc = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    top = tl.full([BLOCK_R], NO_SCORE, tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    for start in range(0, splits, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        inside = s < splits
        row = ((first_part + s) * blocks + block).to(tl.int64)[:, None] * BLOCK_R + r[None, :]
        lse = tl.load(lse_ptr + row, mask=inside[:, None], other=float("-inf"), cache_modifier=".cg")
        mask = inside[:, None, None] & (d < HEAD_DIM)[None, None, :]
        at = part_ptr + row[:, :, None] * HEAD_DIM + d[None, None, :]
        o = tl.load(at, mask=mask, other=0.0, cache_modifier=".cg")
        new_top = tl.maximum(top, tl.max(lse, axis=0))
        weights = tl.exp2(lse - new_top[None, :])
        keep = tl.exp2(top - new_top)
        acc = acc * keep[:, None] + tl.sum(o * weights[:, :, None], axis=0)
        total = total * keep + tl.sum(weights, axis=0)
        top = new_top
    m = first_m + r
    token = m // GROUP
    q_head = head * GROUP + m % GROUP
    if SINKS:
        acc, total = add_sink(acc, top, total, tl.load(sink_ptr + q_head).to(tl.float32) * LOG2E)
    acc = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    at = out_ptr + ((q_begin + token).to(tl.int64) * stride_out + q_head * HEAD_DIM)[:, None] + d[None, :]
    tl.store(at, acc.to(out_ptr.dtype.element_ty), mask=(token < queries)[:, None] & (d < HEAD_DIM)[None, :])
