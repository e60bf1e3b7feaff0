# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
"""Device code of `stream_decode`: attention of one query a row by programs that walk equal shares of all keys."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ._paged import LOG2E, NO_SCORE, add_parts, add_sink, add_tile, shape_scores, tile_offsets, tile_pages
from ._paged_decode import _fetch_ahead, _row_tiles, _tiles_of_rows

ROW: tl.constexpr = tl.constexpr(8)
"""int32 fields of a row that has keys, in the batch's order: slot and 65536 times the row of the batch, context, first
tile it sees, number of tiles. (One field, since the compiler would load the row, which it needs late, too late.)"""

SHARE: tl.constexpr = tl.constexpr(16)
"""int32 fields of a share: steps (0: no work), index in the list of rows, kv head, tile (counted from the row's first),
first and last program of the run of keys it begins in, last program of the run it ends in (itself where that is the
same run, or ends with the share), then the five fields of the row it begins in, batch row and head it ends in."""


@triton.jit
def _find(
    step, slots_ptr, context_ptr, rows, window,
    KV_HEADS: tl.constexpr, TILE: tl.constexpr, WINDOW: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Where a step lies: the row's index among those with keys, and in the batch, head, tile, the row's slot, context,
    first tile and number of tiles (0: past the last)."""
    at = (step // KV_HEADS).to(tl.int32)
    passed = 0  # rows before, and 65536 times those of them with keys
    begin = 0
    before = 0
    for start in range(0, rows, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        tiles = _tiles_of_rows(slots_ptr, context_ptr, None, r, rows, window, TILE, WINDOW, False)
        end = tl.cumsum(tiles, 0) + before
        past = (r < rows) & (end <= at)
        passed += tl.sum(past.to(tl.int32) + (past & (tiles > 0)).to(tl.int32) * 65536)
        begin = tl.maximum(begin, tl.max(tl.where(past, end, 0)))
        before = tl.max(end)
    row = passed % 65536
    context = tl.load(context_ptr + row, mask=row < rows, other=0)
    slot = tl.load(slots_ptr + row, mask=row < rows, other=-1)
    first, tiles = _row_tiles(slot, context, 1, window, TILE, WINDOW)
    inner = (step - tl.cast(begin, tl.int64) * KV_HEADS).to(tl.int32)
    some = tl.maximum(tiles, 1)
    return passed // 65536, row, inner // some, inner % some, slot, context, first, tiles


@triton.jit
def _border(
    share, shares, total, slots_ptr, context_ptr, rows, window, whole_tiles,
    KV_HEADS: tl.constexpr, TILE: tl.constexpr, WINDOW: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """First step of a share: its equal part, moved to an end of the run of keys that it would cut if that is short."""
    step = tl.minimum(share.to(tl.int64), shares) * total // shares
    _, _, _, tile, _, _, _, tiles = _find(step, slots_ptr, context_ptr, rows, window, KV_HEADS, TILE, WINDOW, BLOCK_R)
    moved = tl.where(2 * tile < tiles, step - tile, step - tile + tiles)
    return tl.where(tiles <= whole_tiles, moved, step)


@triton.jit
def _owner(step, total, shares):
    """The share that holds a step of a run that may be cut."""
    return (((step + 1) * shares - 1) // total).to(tl.int32)


@triton.jit(
    do_not_specialize=["rows", "shares", "window", "min_tiles", "whole_tiles"],
    do_not_specialize_on_alignment=["slots_ptr", "context_ptr"],
)
def stream_plan_kernel(
    slots_ptr,  # int32 [R]
    context_ptr,  # int32 [R]
    row_ptr,  # out int32 [R, ROW]
    share_ptr,  # out int32 [shares, SHARE]
    rows,
    shares,
    window,
    min_tiles,
    whole_tiles,
    KV_HEADS: tl.constexpr,
    TILE: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Program i writes row i, if it has keys, and share i.

    Steps are (row, kv head, tile) triples in that order, of rows with keys alone; the tiles of one row and head are a
    run. Share i of n is [i total // n, (i + 1) total // n), n at most `shares` and such that a share has `min_tiles`
    steps; borders do not cut runs of up to `whole_tiles` tiles. Padding has no tiles and so changes no border.
    """
    program = tl.program_id(0)
    tiles_in_all = 0
    index = 0
    for start in range(0, rows, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        tiles = _tiles_of_rows(slots_ptr, context_ptr, None, r, rows, window, TILE, WINDOW, False)
        tiles_in_all += tl.sum(tiles)
        index += tl.sum(((tiles > 0) & (r < program)).to(tl.int32))
    if program < rows:
        slot = tl.load(slots_ptr + program)
        context = tl.load(context_ptr + program)
        first, tiles = _row_tiles(slot, context, 1, window, TILE, WINDOW)
        at = row_ptr + index * ROW
        mask = tiles > 0
        tl.store(at, slot + program * 65536, mask=mask)
        tl.store(at + 1, context, mask=mask)
        tl.store(at + 2, first, mask=mask)
        tl.store(at + 3, tiles, mask=mask)
    if program < shares:
        total = tl.cast(tiles_in_all, tl.int64) * KV_HEADS
        used = tl.maximum(tl.minimum(shares.to(tl.int64), total // min_tiles), 1)
        begin = _border(
            program, used, total, slots_ptr, context_ptr, rows, window, whole_tiles, KV_HEADS, TILE, WINDOW, BLOCK_R
        )
        end = _border(
            program + 1, used, total, slots_ptr, context_ptr, rows, window, whole_tiles, KV_HEADS, TILE, WINDOW, BLOCK_R
        )
        at = share_ptr + program * SHARE
        tl.store(at, (end - begin).to(tl.int32))
        if end > begin:
            index, row, head, tile, slot, context, first, tiles = _find(
                begin, slots_ptr, context_ptr, rows, window, KV_HEADS, TILE, WINDOW, BLOCK_R
            )
            run = begin - tile
            cut = tiles > whole_tiles
            tl.store(at + 1, index)
            tl.store(at + 2, head)
            tl.store(at + 3, tile)
            tl.store(at + 4, tl.where(cut, _owner(run, total, used), program))
            tl.store(at + 5, tl.where(cut, _owner(run + tiles - 1, total, used), program))
            tl.store(at + 7, slot)
            tl.store(at + 8, context)
            tl.store(at + 9, row)
            tl.store(at + 10, first)
            tl.store(at + 11, tiles)
            _, row, head, tile, _, _, _, tiles = _find(
                end - 1, slots_ptr, context_ptr, rows, window, KV_HEADS, TILE, WINDOW, BLOCK_R
            )
            cut = (tiles > whole_tiles) & (end - 1 - tile > run)
            tl.store(at + 6, tl.where(cut, _owner(end - 1 - tile + tiles - 1, total, used), program))
            tl.store(at + 12, row)
            tl.store(at + 13, head)


@triton.jit(do_not_specialize=["window", "score_scale", "cap_scale", "ahead"])
def stream_decode_kernel(
    q_ptr,
    stride_q,  # [R, H, D], heads contiguous
    kv_ptr,
    stride_page,  # [pages, 2, KV_HEADS, BLOCK_SIZE, HEAD_DIM], dense in a page
    table_ptr,
    stride_table,  # int32 [max_slots, max_blocks]
    sink_ptr,  # fp32 [H] or None
    out_ptr,
    stride_out,  # [R, H, D], heads contiguous
    row_ptr,  # int32 [R, ROW]
    share_ptr,  # int32 [programs, SHARE]
    part_ptr,  # fp32 [2 * programs, BLOCK_R, HEAD_DIM]
    lse_ptr,  # fp32 [2 * programs, BLOCK_R]
    count_ptr,  # int32 [programs], zero between launches
    window,
    score_scale,
    cap_scale,
    ahead,  # tiles asked of L2 before the wait
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
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
    """One program a share: a loop over its steps, which are tiles of TILE keys of one row and kv head.

    A run's result is stored in the step that ends it, or, where a border cuts it, as a part: normalised, with its
    log-sum-exp. After the loop the last program to arrive at a cut run combines its parts in the order of the keys.
    The loop carries three steps: what it computes now, with its pages; the next, whose pages it asks for; and the one
    after, whose row it asks for. Loaded where they are needed, they would keep the compiler from copying keys ahead.
    """
    program = tl.program_id(0)
    share = share_ptr + program * SHARE
    if PDL:
        gdc_launch_dependents()
    # Lists and tables are read before the wait, and past L1: see `paged_decode_kernel`.
    steps = tl.load(share, cache_modifier=".cg")
    if steps == 0:
        if PDL:  # noqa: SIM102 - a constant must decide alone: other targets have no such instruction
            if program == 0:  # what follows must not begin before what came before has ended
                gdc_wait()
        return
    index_1 = tl.load(share + 1, cache_modifier=".cg")
    head_1 = tl.load(share + 2, cache_modifier=".cg")
    tile_1 = tl.load(share + 3, cache_modifier=".cg")
    slot = tl.load(share + 7, cache_modifier=".cg")
    context = tl.load(share + 8, cache_modifier=".cg")
    row = tl.load(share + 9, cache_modifier=".cg")
    first = tl.load(share + 10, cache_modifier=".cg")
    tiles = tl.load(share + 11, cache_modifier=".cg")
    table_row = table_ptr + slot.to(tl.int64) * stride_table
    start, stop, kv_at, q_at, out_at, left, earlier = _place(
        context, row, first, tiles, head_1, tile_1, 0, stride_q, stride_out, GROUP, HEAD_DIM, BLOCK_SIZE, TILE
    )
    pages = tile_pages(table_row, start, stop, BLOCK_SIZE, TILE, ".cg")
    behind = context - 1 - window
    head, sink_at = head_1, head_1 * GROUP
    index_1, head_1, tile_1 = _advance(index_1, head_1, tile_1, tiles, KV_HEADS)
    slot_row_1, context_1, first_1, tiles_1 = _load_row(row_ptr, index_1, steps > 1)
    if PDL:
        for begin in range(start, tl.minimum(context, start + tl.minimum(ahead, steps) * TILE), TILE):
            _fetch_ahead(kv_ptr, stride_page, table_row, begin, context, head, KV_HEADS, HEAD_DIM, BLOCK_SIZE, TILE)
        gdc_wait()

    m = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    q_mask = (m < GROUP)[:, None] & (d < HEAD_DIM)[None, :]
    q_inner = m[:, None] * HEAD_DIM + d[None, :]
    q_next = tl.load(q_ptr + q_at + q_inner, mask=q_mask, other=0.0)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    top = tl.full([BLOCK_M], NO_SCORE, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for step in range(steps):
        key = start + tl.arange(0, TILE)
        seen = key < stop
        if WINDOW:  # pages behind it may be anybody's by now: what they hold must not meet a weight of 0
            seen = seen & (key > behind)
        live = seen[:, None] & (d < HEAD_DIM)[None, :]
        at = tile_offsets(pages, start, stride_page, HEAD_DIM, BLOCK_SIZE, TILE) + kv_at
        q = q_next
        q_next_at = (slot_row_1 // 65536).to(tl.int64) * stride_q + head_1 * (GROUP * HEAD_DIM)
        q_next = tl.load(q_ptr + q_next_at + q_inner, mask=q_mask, other=0.0)
        k_at = kv_ptr + at[:, None] + d[None, :]
        k = tl.load(k_at, mask=live, other=0.0)
        v = tl.load(k_at + KV_HEADS * BLOCK_SIZE * HEAD_DIM, mask=live, other=0.0)
        scores = tl.dot(q, tl.trans(k).to(q.dtype), input_precision="ieee")
        scores = shape_scores(scores, score_scale, cap_scale, SOFTCAP)
        scores = tl.where(seen[None, :], scores, float("-inf"))
        acc, top, total = add_tile(acc, top, total, scores, v, q.dtype)
        if (left == 0) | (step + 1 == steps):
            if (left > 0) | (earlier > 0):  # the run goes on after the share, or began before it
                part = 2 * program + (earlier <= 0).to(tl.int32)
                lse = tl.where(total > 0.0, top + tl.log2(tl.where(total > 0.0, total, 1.0)), float("-inf"))
                acc = acc / tl.where(total > 0.0, total, 1.0)[:, None]
                kept = m < BLOCK_R
                tl.store(lse_ptr + part * BLOCK_R + m, lse, mask=kept)
                part_at = part_ptr + part * (BLOCK_R * HEAD_DIM) + q_inner
                tl.store(part_at, acc, mask=kept[:, None] & (d < HEAD_DIM)[None, :])
            else:
                if SINKS:
                    sink = tl.load(sink_ptr + sink_at + m, mask=m < GROUP, other=0.0).to(tl.float32)
                    acc, total = add_sink(acc, top, total, sink * LOG2E)
                acc = acc / tl.where(total > 0.0, total, 1.0)[:, None]
                tl.store(out_ptr + out_at + q_inner, acc.to(out_ptr.dtype.element_ty), mask=q_mask)
            acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
            top = tl.full([BLOCK_M], NO_SCORE, tl.float32)
            total = tl.zeros([BLOCK_M], tl.float32)
        # All that is carried is computed, nothing passed on as it is: the compiler takes no loop with such values.
        start, stop, kv_at, q_at, out_at, left, earlier = _place(
            context_1, slot_row_1 // 65536, first_1, tiles_1, head_1, tile_1, step + 1, stride_q, stride_out,
            GROUP, HEAD_DIM, BLOCK_SIZE, TILE,
        )  # fmt: skip
        if WINDOW:
            behind = context_1 - 1 - window
        if SINKS:
            sink_at = head_1 * GROUP
        pages = tile_pages(
            table_ptr + (slot_row_1 % 65536).to(tl.int64) * stride_table, start, stop, BLOCK_SIZE, TILE, ".cg"
        )
        index_1, head_1, tile_1 = _advance(index_1, head_1, tile_1, tiles_1, KV_HEADS)
        slot_row_1, context_1, first_1, tiles_1 = _load_row(row_ptr, index_1, step + 2 < steps)

    begin_first = tl.load(share + 4, cache_modifier=".cg")
    begin_last = tl.load(share + 5, cache_modifier=".cg")
    begin_row = tl.load(share + 9, cache_modifier=".cg")
    begin_head = tl.load(share + 2, cache_modifier=".cg")
    end_last = tl.load(share + 6, cache_modifier=".cg")
    end_row = tl.load(share + 12, cache_modifier=".cg")
    end_head = tl.load(share + 13, cache_modifier=".cg")
    # Every thread's stores must be ordered before the one thread that counts them. (Not in the loop: the compiler
    # loads ahead only where there is no barrier and no loop inside.)
    tl.debug_barrier()
    _combine(
        part_ptr, lse_ptr, count_ptr, sink_ptr, out_ptr, stride_out, begin_first, begin_last, begin_row, begin_head,
        GROUP, HEAD_DIM, BLOCK_D, BLOCK_R, BLOCK_S, SINKS,
    )  # fmt: skip
    _combine(
        part_ptr, lse_ptr, count_ptr, sink_ptr, out_ptr, stride_out, program, end_last, end_row, end_head,
        GROUP, HEAD_DIM, BLOCK_D, BLOCK_R, BLOCK_S, SINKS,
    )  # fmt: skip


@triton.jit
def _place(
    context, row, first, tiles, head, tile, step, stride_q, stride_out,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Of a step: its first key and the one after its last, where its head lies in a page, in q and in out, how many
    tiles of its run follow, and how many came before the share (0 or less: none)."""
    start = (first + tile) * TILE
    inner = head * (GROUP * HEAD_DIM)
    q_at = row.to(tl.int64) * stride_q + inner
    out_at = row.to(tl.int64) * stride_out + inner
    stop = tl.minimum(start + TILE, context)
    return start, stop, head * (BLOCK_SIZE * HEAD_DIM), q_at, out_at, tiles - tile - 1, tile - step


@triton.jit
def _advance(index, head, tile, tiles, KV_HEADS: tl.constexpr):
    """The step after a row's tile."""
    over = tile + 1 == tiles
    head = tl.where(over, head + 1, head)
    wraps = head == KV_HEADS
    return tl.where(wraps, index + 1, index), tl.where(wraps, 0, head), tl.where(over, 0, tile + 1)


@triton.jit
def _load_row(row_ptr, index, live):
    """The fields of a row; zeros where there is none."""
    at = row_ptr + index * ROW
    slot_row = tl.load(at, mask=live, other=0, cache_modifier=".cg")
    context = tl.load(at + 1, mask=live, other=0, cache_modifier=".cg")
    first = tl.load(at + 2, mask=live, other=0, cache_modifier=".cg")
    tiles = tl.load(at + 3, mask=live, other=0, cache_modifier=".cg")
    return slot_row, context, first, tiles


@triton.jit
def _combine(
    part_ptr, lse_ptr, count_ptr, sink_ptr, out_ptr, stride_out, first, last, row, head,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr,
    SINKS: tl.constexpr,
):  # fmt: skip
    """The last of the programs `first` to `last` to arrive writes their common run: sum_s 2^(lse_s - max) o_s over
    sum_s 2^(lse_s - max), BLOCK_S of them at a time. Of the first it is the second part, of the others the first."""
    if first != last:  # noqa: SIM102 - `and` would count arrivals at every run
        if tl.atomic_add(count_ptr + first, 1, sem="acq_rel") == last - first:
            tl.store(count_ptr + first, 0)
            r = tl.arange(0, BLOCK_R)
            d = tl.arange(0, BLOCK_D)
            acc = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
            top = tl.full([BLOCK_R], NO_SCORE, tl.float32)
            total = tl.zeros([BLOCK_R], tl.float32)
            for start in range(first, last + 1, BLOCK_S):
                s = start + tl.arange(0, BLOCK_S)
                inside = s <= last
                part = (2 * s + (s == first).to(tl.int32))[:, None] * BLOCK_R + r[None, :]
                acc, top, total = add_parts(acc, top, total, part_ptr, lse_ptr, part, inside, HEAD_DIM, BLOCK_D)
            if SINKS:
                sink = tl.load(sink_ptr + head * GROUP + r, mask=r < GROUP, other=0.0).to(tl.float32)
                acc, total = add_sink(acc, top, total, sink * LOG2E)
            acc = acc / tl.where(total > 0.0, total, 1.0)[:, None]
            at = out_ptr + row.to(tl.int64) * stride_out + head * (GROUP * HEAD_DIM)
            mask = (r < GROUP)[:, None] & (d < HEAD_DIM)[None, :]
            tl.store(at + r[:, None] * HEAD_DIM + d[None, :], acc.to(out_ptr.dtype.element_ty), mask=mask)
