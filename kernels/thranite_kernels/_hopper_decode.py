# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc,attr-defined"
"""Device code of `paged_decode` on Hopper, in Gluon: pages copied by tensor map, scores and results by wgmma.

Compiled for sm_90 alone. What the multiplying needs beyond reading is power, and at many rows a step runs at the
board's limit: keys and values go from shared memory to the tensor cores without passing through registers, as the left
operand, whose 64 rows are keys and then dimensions, so that the queries are the narrow one.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from ._hopper_pages import NO_SCORE, PAGE, copy_page

RECORD = gl.constexpr(8)  # of `_paged_decode`, which has the fields

barrier = getattr(gl, "barrier", None) or gl.thread_barrier  # until Triton 3.7


@gluon.jit
def _copy_first_pages(
    kv_desc, pages_ptr, begin, end, count, own, head, ready, k_tiles, v_tiles,
    STAGES: gl.constexpr, KV_HEADS: gl.constexpr, PANELS: gl.constexpr, EARLIER: gl.constexpr,
):  # fmt: skip
    """As many pages as the ring holds, of those that earlier steps have filled or of the others."""
    for stage in gl.static_range(STAGES):
        start = begin + stage * PAGE
        page = gl.load(pages_ptr + stage, mask=stage < count, other=0, cache_modifier=".cg")
        keys = gl.minimum(end - start, PAGE)
        if EARLIER:
            live = (stage < count) & (start + PAGE <= own)
        else:
            live = (stage < count) & (start + PAGE > own)
        copy_page(kv_desc, page, head, keys, ready.index(stage), k_tiles, v_tiles, stage, live, KV_HEADS, PANELS)


@gluon.jit
def _read_queries(
    q_ptr, stride_q, q_begin, queries, head, q_tiles,
    GROUP: gl.constexpr, HEAD_DIM: gl.constexpr, BLOCK_M: gl.constexpr, PANELS: gl.constexpr,
):  # fmt: skip
    """Query rows, (token, head of the group) pairs, into shared memory; zeros beyond the last."""
    ROWS: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    row = gl.arange(0, BLOCK_M, layout=gl.SliceLayout(1, ROWS))
    column = gl.arange(0, 64, layout=gl.SliceLayout(0, ROWS))
    q_row = q_ptr + (q_begin + row // GROUP).to(gl.int64) * stride_q + (head * GROUP + row % GROUP) * HEAD_DIM
    for panel in gl.static_range(PANELS):
        live = (row // GROUP < queries)[:, None] & (column < 64)[None, :]
        q = gl.load(q_row[:, None] + (panel * 64 + column)[None, :], mask=live, other=0.0)
        q_tiles.index(panel).store(q)
    fence_async_shared()
    barrier()


@gluon.jit
def _attend(
    kv_desc, pages_ptr, begin, end, count, own, head, q_tiles, k_tiles, v_tiles, p_tile, ready, score_scale,
    GROUP: gl.constexpr, KV_HEADS: gl.constexpr, MAX_Q: gl.constexpr, PANELS: gl.constexpr, BLOCK_M: gl.constexpr,
    STAGES: gl.constexpr, MMA: gl.constexpr,
):  # fmt: skip
    """Online softmax over the item's pages: results not yet divided, [64, BLOCK_M] each, of dimensions 0 to 63 and of
    64 to 127, the weights' sums and the largest scores, [BLOCK_M] each."""
    key = gl.arange(0, PAGE, layout=gl.SliceLayout(1, MMA))
    m = gl.arange(0, BLOCK_M, layout=gl.SliceLayout(0, MMA))
    position = own + m // GROUP
    first = gl.zeros([64, BLOCK_M], gl.float32, layout=MMA)
    second = gl.zeros([64, BLOCK_M], gl.float32, layout=MMA)
    total = gl.zeros([PAGE, BLOCK_M], gl.float32, layout=MMA)  # by key of a page: warps meet once, at the end
    top = gl.full([BLOCK_M], NO_SCORE, gl.float32, layout=gl.SliceLayout(0, MMA))
    for turn in range(count):
        now = turn % STAGES
        start = begin + turn * PAGE
        after = turn + STAGES
        page = gl.load(pages_ptr + after, mask=after < count, other=0)
        mbarrier.wait(ready.index(now), (turn // STAGES) & 1)
        scores = gl.zeros([PAGE, BLOCK_M], gl.float32, layout=MMA)
        for panel in gl.static_range(PANELS):
            q_tile = q_tiles.index(panel).permute([1, 0])
            scores = warpgroup_mma(k_tiles.index(now * PANELS + panel), q_tile, scores, is_async=True)
        scores = warpgroup_mma_wait(num_outstanding=0, deps=[scores]) * score_scale
        before = PAGE - gl.minimum(end - start, PAGE)  # rows of the tile without a key
        visible = (key >= before)[:, None] & (m >= 0)[None, :]
        if MAX_Q > 1:
            visible = visible & ((start + key - before)[:, None] <= position[None, :])
        scores = gl.where(visible, scores, float("-inf"))
        new_top = gl.maximum(top, gl.max(scores, axis=0))
        weights = gl.exp2(scores - new_top[None, :])
        keep = gl.exp2(top - new_top)
        total = total * keep[None, :] + weights
        p = p_tile.permute([1, 0])
        p.store(weights.to(kv_desc.dtype))
        fence_async_shared()
        barrier()
        first = warpgroup_mma(v_tiles.index(now * PANELS).permute([1, 0]), p, first * keep[None, :], is_async=True)
        if PANELS == 2:
            v_tile = v_tiles.index(now * PANELS + 1).permute([1, 0])
            second = warpgroup_mma(v_tile, p, second * keep[None, :], is_async=True)
            first, second = warpgroup_mma_wait(num_outstanding=0, deps=[first, second])
        else:
            first = warpgroup_mma_wait(num_outstanding=0, deps=[first])
        top = new_top
        barrier()  # all warps are done with the stage
        keys = gl.minimum(end - (start + STAGES * PAGE), PAGE)
        copy_page(kv_desc, page, head, keys, ready.index(now), k_tiles, v_tiles, now, after < count, KV_HEADS, PANELS)
    return first, second, gl.sum(total, axis=0), top


@gluon.jit(do_not_specialize=["score_scale"])
def hopper_decode_kernel(
    q_ptr,
    stride_q,  # [T, H, HEAD_DIM], heads contiguous
    kv_desc,  # [pages, 2 KV_HEADS, PAGE, HEAD_DIM], boxes of a page and 64 dimensions
    table_ptr,
    stride_table,  # int32 [max_slots, max_blocks]
    out_ptr,
    stride_out,  # [T, H, HEAD_DIM], heads contiguous
    item_ptr,  # int32 [items, RECORD]
    part_ptr,  # fp32 [parts, KV_HEADS, BLOCK_R, HEAD_DIM]
    lse_ptr,  # fp32 [parts, KV_HEADS, BLOCK_R]
    count_ptr,  # int32 [parts, KV_HEADS], zero between launches
    score_scale,
    GROUP: gl.constexpr, KV_HEADS: gl.constexpr, MAX_Q: gl.constexpr, HEAD_DIM: gl.constexpr,
    BLOCK_M: gl.constexpr, BLOCK_R: gl.constexpr, BLOCK_S: gl.constexpr, STAGES: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    """One program per (item, kv head), as `paged_decode_kernel`; BLOCK_M query rows, 8 at least, are columns here."""
    PANELS: gl.constexpr = HEAD_DIM // 64
    head = gl.program_id(0) % KV_HEADS
    record = item_ptr + (gl.program_id(0) // KV_HEADS) * RECORD
    if PDL:
        gl.inline_asm_elementwise(
            "griddepcontrol.launch_dependents; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1
        )
    splits = gl.load(record, cache_modifier=".cg")
    packed = gl.load(record + 1, cache_modifier=".cg")
    slot = gl.load(record + 2, cache_modifier=".cg")
    begin = gl.load(record + 3, cache_modifier=".cg")
    end = gl.load(record + 4, cache_modifier=".cg")
    context = gl.load(record + 5, cache_modifier=".cg")
    q_begin = gl.load(record + 6, cache_modifier=".cg")
    first_part = gl.load(record + 7, cache_modifier=".cg")
    if splits == 0:  # without a wait, but for the first item's programs: as `paged_decode_kernel`
        if PDL:  # noqa: SIM102
            if gl.program_id(0) < KV_HEADS:
                gl.inline_asm_elementwise("griddepcontrol.wait; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1)
        return
    split = packed % 65536
    queries = packed // 65536
    pages_ptr = table_ptr + gl.maximum(slot, 0).to(gl.int64) * stride_table + begin // PAGE
    count = (end - begin + PAGE - 1) // PAGE

    TILES: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    k_tiles = gl.allocate_shared_memory(kv_desc.dtype, [STAGES * PANELS, PAGE, 64], TILES)
    v_tiles = gl.allocate_shared_memory(kv_desc.dtype, [STAGES * PANELS, PAGE, 64], TILES)
    q_tiles = gl.allocate_shared_memory(kv_desc.dtype, [PANELS, BLOCK_M, 64], TILES)
    p_tile = gl.allocate_shared_memory(kv_desc.dtype, [BLOCK_M, PAGE], TILES)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1)
    own = context - queries  # position of the first key that this step writes
    _copy_first_pages(
        kv_desc, pages_ptr, begin, end, count, own, head, ready, k_tiles, v_tiles, STAGES, KV_HEADS, PANELS, True
    )
    if PDL:
        gl.inline_asm_elementwise("griddepcontrol.wait; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1)
    _copy_first_pages(
        kv_desc, pages_ptr, begin, end, count, own, head, ready, k_tiles, v_tiles, STAGES, KV_HEADS, PANELS, False
    )
    _read_queries(q_ptr, stride_q, q_begin, queries, head, q_tiles, GROUP, HEAD_DIM, BLOCK_M, PANELS)

    MMA: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BLOCK_M, 16])
    first, second, whole, top = _attend(
        kv_desc, pages_ptr, begin, end, count, own, head, q_tiles, k_tiles, v_tiles, p_tile, ready, score_scale,
        GROUP, KV_HEADS, MAX_Q, PANELS, BLOCK_M, STAGES, MMA,
    )  # fmt: skip
    scale = 1.0 / gl.where(whole > 0.0, whole, 1.0)
    m = gl.arange(0, BLOCK_M, layout=gl.SliceLayout(0, MMA))
    token = m // GROUP
    if splits == 1:
        at = out_ptr + (q_begin + token).to(gl.int64) * stride_out + (head * GROUP + m % GROUP) * HEAD_DIM
        _store(first * scale[None, :], at, token < queries, 0, BLOCK_M)
        if PANELS == 2:
            _store(second * scale[None, :], at, token < queries, 64, BLOCK_M)
    else:
        part_row = ((first_part + split) * KV_HEADS + head).to(gl.int64) * BLOCK_R + m
        lse = gl.where(whole > 0.0, top + gl.log2(gl.where(whole > 0.0, whole, 1.0)), float("-inf"))
        _store(first * scale[None, :], part_ptr + part_row * HEAD_DIM, m < BLOCK_R, 0, BLOCK_M)
        if PANELS == 2:
            _store(second * scale[None, :], part_ptr + part_row * HEAD_DIM, m < BLOCK_R, 64, BLOCK_M)
        gl.store(lse_ptr + part_row, lse, mask=m < BLOCK_R)
        barrier()  # every thread's stores before the one thread that counts them
        counter = count_ptr + first_part * KV_HEADS + head
        if gl.atomic_add(counter, 1, sem="acq_rel") == splits - 1:
            gl.store(counter, 0)
            _combine(
                part_ptr, lse_ptr, out_ptr, stride_out, first_part, splits, head, q_begin, queries,
                GROUP, KV_HEADS, HEAD_DIM, BLOCK_R, BLOCK_S,
            )  # fmt: skip


@gluon.jit
def _store(tile, row_ptr, live, first: gl.constexpr, BLOCK_M: gl.constexpr):
    """tile [64, BLOCK_M] to columns `first`.. of rows [BLOCK_M], in their type."""
    OUT: gl.constexpr = gl.BlockedLayout([4, 1], [16, 2], [1, 4], [0, 1])
    value = gl.convert_layout(tile.to(row_ptr.dtype.element_ty), OUT)
    pointer = gl.convert_layout(row_ptr, gl.SliceLayout(0, OUT))
    mask = gl.convert_layout(live, gl.SliceLayout(0, OUT))
    d = gl.arange(0, 64, layout=gl.SliceLayout(1, OUT))
    gl.store(pointer[None, :] + (first + d)[:, None], value, mask=mask[None, :] & (d < 64)[:, None])


@gluon.jit
def _combine(
    part_ptr, lse_ptr, out_ptr, stride_out, first_part, splits, head, q_begin, queries,
    GROUP: gl.constexpr, KV_HEADS: gl.constexpr, HEAD_DIM: gl.constexpr, BLOCK_R: gl.constexpr, BLOCK_S: gl.constexpr,
):  # fmt: skip
    """As `_paged_decode._combine`."""
    LANES: gl.constexpr = HEAD_DIM // 4
    PARTS: gl.constexpr = gl.BlockedLayout([1, 1, 4], [1, 32 // LANES, LANES], [4, 1, 1], [2, 1, 0])
    BY_ROW: gl.constexpr = gl.SliceLayout(2, PARTS)  # [BLOCK_S, BLOCK_R]
    RESULT: gl.constexpr = gl.SliceLayout(0, PARTS)  # [BLOCK_R, HEAD_DIM]
    OF_ROW: gl.constexpr = gl.SliceLayout(0, BY_ROW)
    r = gl.arange(0, BLOCK_R, layout=OF_ROW)
    s = gl.arange(0, BLOCK_S, layout=gl.SliceLayout(1, BY_ROW))
    column = gl.arange(0, HEAD_DIM, layout=gl.SliceLayout(0, gl.SliceLayout(1, PARTS)))
    acc = gl.zeros([BLOCK_R, HEAD_DIM], gl.float32, layout=RESULT)
    top = gl.full([BLOCK_R], NO_SCORE, gl.float32, layout=OF_ROW)
    total = gl.zeros([BLOCK_R], gl.float32, layout=OF_ROW)
    for start in range(0, splits, BLOCK_S):
        inside = (start + s < splits)[:, None] & (r < BLOCK_R)[None, :]
        row = ((first_part + start + s) * KV_HEADS + head).to(gl.int64)[:, None] * BLOCK_R + r[None, :]
        lse = gl.load(lse_ptr + row, mask=inside, other=float("-inf"), cache_modifier=".cg")
        at = part_ptr + row[:, :, None] * HEAD_DIM + column[None, None, :]
        mask = inside[:, :, None] & (column < HEAD_DIM)[None, None, :]
        o = gl.load(at, mask=mask, other=0.0, cache_modifier=".cg")
        new_top = gl.maximum(top, gl.max(lse, axis=0))
        weights = gl.exp2(lse - new_top[None, :])
        keep = gl.exp2(top - new_top)
        by_result = gl.convert_layout(keep, gl.SliceLayout(1, RESULT))
        acc = acc * by_result[:, None] + gl.sum(o * weights[:, :, None], axis=0)
        total = total * keep + gl.sum(weights, axis=0)
        top = new_top
    whole = gl.convert_layout(total, gl.SliceLayout(1, RESULT))
    acc = acc / gl.where(whole > 0.0, whole, 1.0)[:, None]
    m = gl.arange(0, BLOCK_R, layout=gl.SliceLayout(1, RESULT))
    d = gl.arange(0, HEAD_DIM, layout=gl.SliceLayout(0, RESULT))
    token = m // GROUP
    at = (q_begin + token).to(gl.int64) * stride_out + (head * GROUP + m % GROUP) * HEAD_DIM
    gl.store(
        out_ptr + at[:, None] + d[None, :],
        acc.to(out_ptr.dtype.element_ty),
        mask=(token < queries)[:, None] & (d < HEAD_DIM)[None, :],
    )
