# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc,attr-defined"
"""Device code of `paged_prefill` on Hopper, in Gluon: a warp that copies, two groups of four that multiply.

Compiled for sm_90 alone. A program takes one block of 128 query rows of one kv head after another. Each group has 64 of
them, in registers; both read the same ring of keys and values. A group's softmax of one page runs beside its product of
the page before with the values, and one group's beside the other's products (FlashAttention-3, Shah et al. 2024).
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from ._hopper_gemm import copy_tile
from ._hopper_pages import NO_SCORE, PAGE, as_tile, copy_page

RECORD = gl.constexpr(8)  # of `_paged_prefill`, which has the fields
GROUPS = gl.constexpr(2)  # of warps that multiply
ROWS = gl.constexpr(64)  # query rows of a group


@gluon.jit
def _put(fields, at, value):
    """One number of an item, from the warp that copies."""
    ONE: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    fields.index(at).store(gl.full([1], 0, gl.int32, layout=ONE) + value)


@gluon.jit
def _field(fields, at):
    """The same, in a group of four warps."""
    ONE: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    return gl.max(fields.index(at).load(ONE), axis=0)


@gluon.jit
def _copies(
    q_desc, kv_desc, table_ptr, stride_table, item_ptr, items, fields, q_tiles, k_tiles, v_tiles,
    q_ready, q_free, ready, free,
    GROUP: gl.constexpr, BOX: gl.constexpr, KV_HEADS: gl.constexpr, HEAD_DIM: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """The warp that copies: an item's queries and its pages, then the next item's, as far ahead as there is room."""
    PANELS: gl.constexpr = HEAD_DIM // 64
    TOKENS: gl.constexpr = ROWS // BOX
    BOXES: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    Q_BOX: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=3)
    k_boxes = as_tile(k_tiles, [STAGES * PANELS, PAGE, 64], BOXES)
    v_boxes = as_tile(v_tiles, [STAGES * PANELS, PAGE, 64], BOXES)
    begun_ptr = item_ptr + items * RECORD  # the record after the last item's
    used = gl.load(begun_ptr + 2)
    done = 0 * items
    turn = 0 * items
    work = gl.atomic_add(begun_ptr, 1, sem="relaxed")
    while work < used * KV_HEADS:
        head = work % KV_HEADS
        record = item_ptr + (used - 1 - work // KV_HEADS) * RECORD
        queries = gl.load(record)
        q_begin = gl.load(record + 1)
        slot = gl.load(record + 2)
        end = gl.load(record + 3)
        position = gl.load(record + 4)
        mbarrier.wait(q_free, (done - 1) & 1, pred=done > 0)
        _put(fields, 0, queries)
        _put(fields, 1, q_begin * KV_HEADS + head)
        _put(fields, 2, end)
        _put(fields, 3, position)
        mbarrier.expect(q_ready, GROUPS * ROWS * HEAD_DIM * 2)
        for part in gl.static_range(GROUPS):
            q_box = as_tile(q_tiles.index(part), [TOKENS, BOX, HEAD_DIM], Q_BOX)
            copy_tile(q_desc, [q_begin + part * TOKENS, head * GROUP, 0], q_ready, q_box)
        table_row = table_ptr + gl.maximum(slot, 0).to(gl.int64) * stride_table
        count = gl.maximum((end + PAGE - 1) // PAGE, 1)
        page = gl.load(table_row, mask=end > 0, other=0)
        for step in range(count):
            after = gl.load(table_row + step + 1, mask=step + 1 < count, other=0)
            stage = turn % STAGES
            keys = gl.minimum(end - step * PAGE, PAGE)
            mbarrier.wait(free.index(stage), (turn // STAGES - 1) & 1, pred=turn >= STAGES)
            copy_page(kv_desc, page, head, keys, ready.index(stage), k_boxes, v_boxes, stage, True, KV_HEADS, PANELS)
            page = after
            turn += 1
        done += 1
        work = gl.atomic_add(begun_ptr, 1, sem="relaxed")
    mbarrier.wait(q_free, (done - 1) & 1, pred=done > 0)
    _put(fields, 0, 0)
    mbarrier.arrive(q_ready, count=1)
    # The last of all programs leaves the record as it found it, for the next layer.
    if gl.atomic_add(begun_ptr + 1, 1, sem="acq_rel") == gl.num_programs(0) - 1:
        gl.store(begun_ptr, 0)
        gl.store(begun_ptr + 1, 0)


@gluon.jit
def _visible(scores, start, first, end, position, SCORES: gl.constexpr):
    """Scores of the keys that a query may see, -inf elsewhere; `first`: the least of the positions."""
    if start + PAGE - 1 > first:
        column = gl.arange(0, PAGE, layout=gl.SliceLayout(0, SCORES))
        before = PAGE - gl.minimum(end - start, PAGE)  # columns of the tile without a key
        visible = (column >= before)[None, :] & ((start + column - before)[None, :] <= position[:, None])
        scores = gl.where(visible, scores, float("-inf"))
    return scores


@gluon.jit
def _attend(
    score_scale, q, k_tiles, v_tiles, ready, free, turn, first, end, position,
    HEAD_DIM: gl.constexpr, STAGES: gl.constexpr, SCORES: gl.constexpr, RESULT: gl.constexpr,
):  # fmt: skip
    """Online softmax over an item's pages: results not yet divided, [ROWS, HEAD_DIM], the weights' sums, [ROWS], and
    the pages taken from the ring so far."""
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=RESULT, k_width=2)
    dtype: gl.constexpr = k_tiles.dtype
    count = gl.maximum((end + PAGE - 1) // PAGE, 1)
    stage = turn % STAGES
    mbarrier.wait(ready.index(stage), (turn // STAGES) & 1)
    scores = gl.zeros([ROWS, PAGE], gl.float32, layout=SCORES)
    scores = warpgroup_mma(q, k_tiles.index(stage).permute([1, 0]), scores, is_async=True)
    scores = warpgroup_mma_wait(num_outstanding=0, deps=[scores])
    scores = _visible(scores, 0, first, end, position, SCORES)
    lowest = gl.full([ROWS], NO_SCORE, gl.float32, layout=gl.SliceLayout(1, SCORES))
    top = gl.maximum(lowest, gl.max(scores, axis=1) * score_scale)
    weights = gl.exp2(scores * score_scale - top[:, None])
    total = gl.sum(weights, axis=1)
    p = gl.convert_layout(weights.to(dtype), WEIGHTS)
    acc = gl.zeros([ROWS, HEAD_DIM], gl.float32, layout=RESULT)
    mbarrier.wait(ready.index((turn + 1) % STAGES), ((turn + 1) // STAGES) & 1, pred=count > 1)
    for step in range(1, count):
        before = stage
        turn += 1
        stage = turn % STAGES
        scores = gl.zeros([ROWS, PAGE], gl.float32, layout=SCORES)
        scores = warpgroup_mma(q, k_tiles.index(stage).permute([1, 0]), scores, is_async=True)
        acc = warpgroup_mma(p, v_tiles.index(before), acc, is_async=True)
        scores = warpgroup_mma_wait(num_outstanding=1, deps=[scores])
        scores = _visible(scores, step * PAGE, first, end, position, SCORES)
        new_top = gl.maximum(top, gl.max(scores, axis=1) * score_scale)
        weights = gl.exp2(scores * score_scale - new_top[:, None])
        keep = gl.exp2(top - new_top)
        total = total * keep + gl.sum(weights, axis=1)
        top = new_top
        p = gl.convert_layout(weights.to(dtype), WEIGHTS)
        # Here, because ptxas moves the wait for a product up past arithmetic, but not past a loop as this one.
        mbarrier.wait(ready.index((turn + 1) % STAGES), ((turn + 1) // STAGES) & 1, pred=step + 1 < count)
        acc = warpgroup_mma_wait(num_outstanding=0, deps=[acc])
        mbarrier.arrive(free.index(before), count=1)
        acc = acc * gl.convert_layout(keep, gl.SliceLayout(1, RESULT))[:, None]
    acc = warpgroup_mma(p, v_tiles.index(stage), acc, is_async=True)
    acc = warpgroup_mma_wait(num_outstanding=0, deps=[acc])
    mbarrier.arrive(free.index(stage), count=1)
    return acc, total, turn + 1


@gluon.jit
def _rows(
    out_ptr, stride_out, score_scale, fields, q_tiles, k_tiles, v_tiles, q_ready, q_free, ready, free,
    GROUP: gl.constexpr, BOX: gl.constexpr, KV_HEADS: gl.constexpr, HEAD_DIM: gl.constexpr, STAGES: gl.constexpr,
    PART: gl.constexpr,
):  # fmt: skip
    """A group of four warps: ROWS query rows of each item, (token, head of the group) pairs, from PART * ROWS on."""
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, PAGE, 16])
    RESULT: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, HEAD_DIM, 16]
    )
    QUERIES: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=SCORES, k_width=2)
    OUT: gl.constexpr = gl.BlockedLayout([1, 8], [256 // HEAD_DIM, HEAD_DIM // 8], [4, 1], [1, 0])
    token = (PART * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, SCORES))) // BOX
    row = PART * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, OUT))
    d = gl.arange(0, HEAD_DIM, layout=gl.SliceLayout(0, OUT))
    mbarrier.wait(q_ready, 0)
    queries = _field(fields, 0)
    done = 0 * queries
    turn = 0 * queries
    while queries > 0:
        place = _field(fields, 1)
        end = _field(fields, 2)
        first = _field(fields, 3)
        q = q_tiles.index(PART).load(QUERIES)
        mbarrier.arrive(q_free, count=1)
        acc, total, turn = _attend(
            score_scale, q, k_tiles, v_tiles, ready, free, turn, first, end, first + token,
            HEAD_DIM, STAGES, SCORES, RESULT,
        )  # fmt: skip
        scale = 1.0 / gl.where(total > 0.0, total, 1.0)
        acc = acc * gl.convert_layout(scale, gl.SliceLayout(1, RESULT))[:, None]
        value = gl.convert_layout(acc.to(out_ptr.dtype.element_ty), OUT)
        q_row = (place // KV_HEADS + row // BOX).to(gl.int64)
        q_head = place % KV_HEADS * GROUP + row % BOX
        at = q_row * stride_out + q_head * HEAD_DIM
        live = ((row // BOX < queries) & (row % BOX < GROUP))[:, None] & (d < HEAD_DIM)[None, :]
        gl.store(out_ptr + at[:, None] + d[None, :], value, mask=live)
        done += 1
        mbarrier.wait(q_ready, done & 1)
        queries = _field(fields, 0)


@gluon.jit(do_not_specialize=["items", "score_scale"])
def hopper_prefill_kernel(
    q_desc,  # [T, H, HEAD_DIM], boxes of 64 / BOX tokens and BOX heads
    kv_desc,  # [pages, 2 * KV_HEADS, PAGE, HEAD_DIM], boxes of a page and 64 dimensions
    table_ptr,
    stride_table,  # int32 [max_slots, max_blocks]
    out_ptr,
    stride_out,  # [T, H, HEAD_DIM], heads contiguous
    item_ptr,  # int32 [items + 1, RECORD]; of the last record: (item, kv head) pairs begun, programs done, items used
    items,
    score_scale,
    GROUP: gl.constexpr,
    BOX: gl.constexpr,
    KV_HEADS: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    STAGES: gl.constexpr,
):
    """As many programs as multiprocessors, each of which takes the next (item, kv head) when it has room: from the last
    item on, so that within a row the blocks that see most keys come first."""
    TILES: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    PLAIN: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    dtype: gl.constexpr = kv_desc.dtype
    q_tiles = gl.allocate_shared_memory(dtype, [GROUPS, ROWS, HEAD_DIM], TILES)
    k_tiles = gl.allocate_shared_memory(dtype, [STAGES, PAGE, HEAD_DIM], TILES)
    v_tiles = gl.allocate_shared_memory(dtype, [STAGES, PAGE, HEAD_DIM], TILES)
    fields = gl.allocate_shared_memory(gl.int32, [4, 1], PLAIN)  # of the item whose queries are in `q_tiles`
    q_ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    q_free = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    mbarrier.init(q_ready, count=1)
    mbarrier.init(q_free, count=GROUPS)
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1)
        mbarrier.init(free.index(stage), count=GROUPS)
    gl.warp_specialize(
        [
            (
                _rows,
                (
                    out_ptr, stride_out, score_scale, fields, q_tiles, k_tiles, v_tiles, q_ready, q_free, ready, free,
                    GROUP, BOX, KV_HEADS, HEAD_DIM, STAGES, 0,
                ),
            ),
            (
                _rows,
                (
                    out_ptr, stride_out, score_scale, fields, q_tiles, k_tiles, v_tiles, q_ready, q_free, ready, free,
                    GROUP, BOX, KV_HEADS, HEAD_DIM, STAGES, 1,
                ),
            ),
            (
                _copies,
                (
                    q_desc, kv_desc, table_ptr, stride_table, item_ptr, items, fields, q_tiles, k_tiles, v_tiles,
                    q_ready, q_free, ready, free,
                    GROUP, BOX, KV_HEADS, HEAD_DIM, STAGES,
                ),
            ),
        ],
        [4, 1],
        [232, 40],
    )  # fmt: skip
