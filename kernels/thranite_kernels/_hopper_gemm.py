# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc,attr-defined"
"""Device code of `hopper_gemm`, in Gluon: one warp copies tiles of W and x by tensor map, the others multiply them.

Compiled for sm_90 alone: its products are wgmma's.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

from ._glu import LOG2E

copy_tile = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared  # until Triton 3.7


@gluon.jit
def _copy_rows(w64, w32, w16, row, column, ready, tile, live, ROWS: gl.constexpr):
    """ROWS of W from `row` on, a panel of 64 columns wide, in boxes of 64, 32 and 16 rows."""
    if ROWS == 128:
        copy_tile(w64, [row, column], ready, tile.slice(0, 64), pred=live)
        copy_tile(w64, [row + 64, column], ready, tile.slice(64, 64), pred=live)
    else:
        if ROWS & 64:
            copy_tile(w64, [row, column], ready, tile.slice(0, 64), pred=live)
        if ROWS & 32:
            copy_tile(w32, [row + (ROWS & 64), column], ready, tile.slice(ROWS & 64, 32), pred=live)
        if ROWS & 16:
            copy_tile(w16, [row + (ROWS & 96), column], ready, tile.slice(ROWS & 96, 16), pred=live)


@gluon.jit
def _copy_weights(
    w64, w32, w16, row, step, ready, w_tiles, stage, live,
    N: gl.constexpr, ROWS: gl.constexpr, HALVES: gl.constexpr, PANELS: gl.constexpr, BYTES: gl.constexpr,
):  # fmt: skip
    """A step's weights into a stage, whose barrier then waits for BYTES, x's among them."""
    mbarrier.expect(ready, BYTES, pred=live)
    for half in gl.static_range(HALVES):
        for panel in gl.static_range(PANELS):
            tile = w_tiles.index((stage * HALVES + half) * PANELS + panel)
            _copy_rows(w64, w32, w16, row + half * N, (step * PANELS + panel) * 64, ready, tile, live, ROWS)


@gluon.jit
def _copy_x(x_desc, step, ready, x_tiles, stage, live, PANELS: gl.constexpr):
    for panel in gl.static_range(PANELS):
        column = (step * PANELS + panel) * 64
        copy_tile(x_desc, [0, column], ready, x_tiles.index(stage * PANELS + panel), pred=live)


@gluon.jit
def _copies(
    w64, w32, w16, x_desc, w_tiles, x_tiles, ready, free, row, first, count,
    N: gl.constexpr, ROWS: gl.constexpr, HALVES: gl.constexpr, PANELS: gl.constexpr, STAGES: gl.constexpr,
    TOGETHER: gl.constexpr, BYTES: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    """The copying warp: a full ring of weights before the wait for what the kernel before leaves, which is x."""
    for stage in gl.static_range(STAGES):
        _copy_weights(
            w64, w32, w16, row, first + stage, ready.index(stage), w_tiles, stage, stage < count,
            N, ROWS, HALVES, PANELS, BYTES,
        )  # fmt: skip
    if PDL:
        gl.inline_asm_elementwise("griddepcontrol.wait; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1)
    for stage in gl.static_range(STAGES):
        _copy_x(x_desc, first + stage, ready.index(stage), x_tiles, stage, stage < count, PANELS)
    # Columns that lie side by side are asked for together, 256 bytes of each row: 4 % of the memory's rate.
    for step in range(STAGES, count, TOGETHER):
        for more in gl.static_range(TOGETHER):
            turn = step + more
            mbarrier.wait(free.index(turn % STAGES), (turn // STAGES - 1) & 1, pred=turn < count)
        for more in gl.static_range(TOGETHER):
            turn = step + more
            slot = turn % STAGES
            _copy_weights(
                w64, w32, w16, row, first + turn, ready.index(slot), w_tiles, slot, turn < count,
                N, ROWS, HALVES, PANELS, BYTES,
            )  # fmt: skip
        for more in gl.static_range(TOGETHER):
            turn = step + more
            _copy_x(x_desc, first + turn, ready.index(turn % STAGES), x_tiles, turn % STAGES, turn < count, PANELS)


@gluon.jit
def _products(
    w_tiles, x_tiles, ready, free, y_ptr, stride_y, rows, row, count,
    N: gl.constexpr, BLOCK_M: gl.constexpr, ROWS: gl.constexpr, TILE: gl.constexpr, PARTS: gl.constexpr,
    HALVES: gl.constexpr, PANELS: gl.constexpr, STAGES: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """The multiplying warps: yᵀ [TILE, BLOCK_M] += W xᵀ a step, then the tile's first ROWS, or with two halves
    silu(first) times second. What lies in shared memory below ROWS is whatever was there."""
    dtype: gl.constexpr = w_tiles.dtype
    MMA: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[WARPS, 1], instr_shape=[16, BLOCK_M, 16]
    )
    acc = gl.zeros([TILE, BLOCK_M], gl.float32, layout=MMA)
    second = gl.zeros([TILE, BLOCK_M], gl.float32, layout=MMA)
    for step in range(count):
        stage = step % STAGES
        mbarrier.wait(ready.index(stage), (step // STAGES) & 1)
        for panel in gl.static_range(PANELS):
            x = x_tiles.index(stage * PANELS + panel).permute([1, 0])
            acc = warpgroup_mma(w_tiles.index(stage * HALVES * PANELS + panel), x, acc, is_async=True)
            if HALVES == 2:
                tile = w_tiles.index((stage * HALVES + 1) * PANELS + panel)
                second = warpgroup_mma(tile, x, second, is_async=True)
        # All but this step's have been done: the stage of the step before is free.
        if HALVES == 2:
            acc, second = warpgroup_mma_wait(num_outstanding=2 * PANELS, deps=[acc, second])
        else:
            acc = warpgroup_mma_wait(num_outstanding=PANELS, deps=[acc])
        mbarrier.arrive(free.index((step + STAGES - 1) % STAGES), count=1, pred=step > 0)
    if HALVES == 2:
        acc, second = warpgroup_mma_wait(num_outstanding=0, deps=[acc, second])
        gate = acc.to(dtype).to(gl.float32)  # rounded as a product's result is
        acc = gate / (1.0 + gl.exp2(-gate * LOG2E)) * second.to(dtype).to(gl.float32)
    else:
        acc = warpgroup_mma_wait(num_outstanding=0, deps=[acc])
    EACH: gl.constexpr = 4 if PARTS > 1 else 8  # 16 bytes of a row of y a thread
    LANES: gl.constexpr = TILE // EACH if TILE // EACH < 32 else 32
    OUT: gl.constexpr = gl.BlockedLayout([EACH, 1], [LANES, 32 // LANES], [1, WARPS], [0, 1])
    tile = gl.convert_layout(acc.to(y_ptr.dtype.element_ty), OUT)
    n = gl.arange(0, TILE, layout=gl.SliceLayout(1, OUT))
    m = gl.arange(0, BLOCK_M, layout=gl.SliceLayout(0, OUT))
    inside = (m < rows)[None, :] & ((n < ROWS) & (row + n < N))[:, None]
    gl.store(y_ptr + row + m[None, :] * stride_y + n[:, None], tile, mask=inside)


@gluon.jit(do_not_specialize=["rows"])
def hopper_gemm_kernel(
    w64,
    w32,
    w16,  # W [HALVES * N, K] as tensor maps with boxes of so many rows and 64 columns
    x_desc,  # x [rows, K], boxes of BLOCK_M rows and 64 columns
    y_ptr,
    stride_y,  # [rows, N] in x's type, or fp32 [PARTS, rows, N]
    rows,
    N: gl.constexpr, K: gl.constexpr, BLOCK_M: gl.constexpr, ROWS: gl.constexpr, TILE: gl.constexpr,
    PARTS: gl.constexpr, HALVES: gl.constexpr, PANELS: gl.constexpr, STAGES: gl.constexpr, TOGETHER: gl.constexpr,
    PDL: gl.constexpr,
):  # fmt: skip
    """One program for ROWS rows of W (of each half) and one of PARTS ranges of columns: none shares a tile."""
    STEPS: gl.constexpr = K // (64 * PANELS)
    WARPS: gl.constexpr = gl.num_warps()
    BYTES: gl.constexpr = (HALVES * ROWS + BLOCK_M) * 128 * PANELS
    part = gl.program_id(0) % PARTS
    row = gl.program_id(0) // PARTS * ROWS
    first = part * STEPS // PARTS
    count = (part + 1) * STEPS // PARTS - first
    dtype: gl.constexpr = x_desc.dtype
    w_tiles = gl.allocate_shared_memory(dtype, [STAGES * HALVES * PANELS, TILE, 64], x_desc.layout)
    x_tiles = gl.allocate_shared_memory(dtype, [STAGES * PANELS, BLOCK_M, 64], x_desc.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1)
        mbarrier.init(free.index(stage), count=1)
    # Behind a plain product, as q, k and v are, nothing begins early: decode attention would take its places where
    # multiprocessors are free first, three programs on one, and be late by the work of two.
    if PDL and HALVES * PARTS > 1:
        gl.inline_asm_elementwise(
            "griddepcontrol.launch_dependents; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1
        )
    y_part = y_ptr + part.to(gl.int64) * rows * N
    gl.warp_specialize(
        [
            (
                _products,
                (
                    w_tiles, x_tiles, ready, free, y_part, stride_y, rows, row, count,
                    N, BLOCK_M, ROWS, TILE, PARTS, HALVES, PANELS, STAGES, WARPS,
                ),
            ),
            (
                _copies,
                (
                    w64, w32, w16, x_desc, w_tiles, x_tiles, ready, free, row, first, count,
                    N, ROWS, HALVES, PANELS, STAGES, TOGETHER, BYTES, PDL,
                ),
            ),
        ],
        [1],
        [40],
    )  # fmt: skip
