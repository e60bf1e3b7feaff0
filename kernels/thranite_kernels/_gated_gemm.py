# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc,attr-defined"
"""Device code of `gated_gemm`, in Gluon: one warp copies tiles of x and W by tensor map, eight multiply and activate.

Compiled for sm_90 alone: its products are wgmma's.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from ._glu import LOG2E
from ._hopper_gemm import copy_tile

write_tile = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global  # until Triton 3.7


@gluon.jit
def place(tile, row_tiles, COLUMN_TILES: gl.constexpr, GROUP: gl.constexpr):
    """Row and column of a tile: GROUP rows of tiles column by column, so that programs at work share what L2 holds."""
    each: gl.constexpr = GROUP * COLUMN_TILES
    first = tile // each * GROUP
    height = gl.minimum(row_tiles - first, GROUP)
    return first + tile % each % height, tile % each // height


@gluon.jit
def copy_weights(w_desc, column, step, ready, w_tile, N: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr):
    """BLOCK_N rows of gate and as many of up, 64 columns wide, of a stage that waits for BLOCK_M rows of x besides."""
    mbarrier.expect(ready, (BLOCK_M + 2 * BLOCK_N) * 128)
    copy_tile(w_desc, [column * BLOCK_N, step * 64], ready, w_tile.slice(0, BLOCK_N))
    copy_tile(w_desc, [N + column * BLOCK_N, step * 64], ready, w_tile.slice(BLOCK_N, BLOCK_N))


@gluon.jit
def _copies(
    x_desc, w_desc, x_tiles, w_tiles, ready, free, tiles, row_tiles,
    N: gl.constexpr, K: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr, GROUP: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    """The copying warp, a ring of stages ahead over all tiles of the program. The first weights are copied before the
    wait for what the kernel before leaves, which is x."""
    STEPS: gl.constexpr = K // 64
    row, column = place(gl.program_id(0), row_tiles, N // BLOCK_N, GROUP)
    for stage in gl.static_range(STAGES):
        copy_weights(w_desc, column, stage, ready.index(stage), w_tiles.index(stage), N, BLOCK_M, BLOCK_N)
    if PDL:
        gl.inline_asm_elementwise("griddepcontrol.wait; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1)
    for stage in gl.static_range(STAGES):
        copy_tile(x_desc, [row * BLOCK_M, stage * 64], ready.index(stage), x_tiles.index(stage))
    turn = STAGES + 0 * row
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        row, column = place(tile, row_tiles, N // BLOCK_N, GROUP)
        for step in range(gl.where(tile == gl.program_id(0), STAGES, 0), STEPS):
            slot = turn % STAGES
            mbarrier.wait(free.index(slot), (turn // STAGES - 1) & 1)
            copy_weights(w_desc, column, step, ready.index(slot), w_tiles.index(slot), N, BLOCK_M, BLOCK_N)
            copy_tile(x_desc, [row * BLOCK_M, step * 64], ready.index(slot), x_tiles.index(slot))
            turn += 1


@gluon.jit
def activated(acc, dtype: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr):
    """silu(gate) times up, of products side by side that are rounded as a product's result is."""
    gate, up = gl.split(gl.permute(gl.reshape(acc, [BLOCK_M, 2, BLOCK_N]), [0, 2, 1]))
    gate = gate.to(dtype).to(gl.float32)
    y = gate / (1.0 + gl.exp2(-gate * LOG2E)) * up.to(dtype).to(gl.float32)
    return y.to(dtype)


@gluon.jit
def _products(
    y_desc, x_tiles, w_tiles, y_tile, ready, free, tiles, row_tiles,
    N: gl.constexpr, K: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr, GROUP: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """The multiplying warps: x [BLOCK_M, K] times gate's and up's rows side by side, [BLOCK_M, 2 BLOCK_N], of which a
    thread holds a gate and its up; then silu(gate) times up, which is copied out while the next tile is begun."""
    dtype: gl.constexpr = x_tiles.dtype
    MMA: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[WARPS, 1], instr_shape=[16, 2 * BLOCK_N, 16]
    )
    turn = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        row, column = place(tile, row_tiles, N // BLOCK_N, GROUP)
        acc = gl.zeros([BLOCK_M, 2 * BLOCK_N], gl.float32, layout=MMA)
        for step in range(K // 64):
            slot = turn % STAGES
            mbarrier.wait(ready.index(slot), (turn // STAGES) & 1)
            acc = warpgroup_mma(x_tiles.index(slot), w_tiles.index(slot).permute([1, 0]), acc, is_async=True)
            acc = warpgroup_mma_wait(num_outstanding=1, deps=[acc])
            # All but this step's have been done: the stage of the step before is free.
            mbarrier.arrive(free.index((turn + STAGES - 1) % STAGES), count=1, pred=step > 0)
            turn += 1
        acc = warpgroup_mma_wait(num_outstanding=0, deps=[acc])
        mbarrier.arrive(free.index((turn + STAGES - 1) % STAGES), count=1)
        y = activated(acc, dtype, BLOCK_M, BLOCK_N)
        tma.store_wait(0)  # of the tile before
        y_tile.store(y)
        fence_async_shared()
        write_tile(y_desc, [row * BLOCK_M, column * BLOCK_N], y_tile)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["rows"])
def gated_gemm_kernel(
    x_desc,  # x [rows, K], boxes of BLOCK_M rows and 64 columns
    w_desc,  # W [2 N, K], gate before up, boxes of BLOCK_N rows and 64 columns
    y_desc,  # y [rows, N], boxes of BLOCK_M rows and BLOCK_N columns
    rows,
    N: gl.constexpr, K: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr, GROUP: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    """Program p computes tiles p, p + programs, … What lies beyond the last row is read as zeros and not written."""
    WARPS: gl.constexpr = gl.num_warps()
    dtype: gl.constexpr = x_desc.dtype
    row_tiles = (rows + BLOCK_M - 1) // BLOCK_M
    tiles = row_tiles * (N // BLOCK_N)
    x_tiles = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_M, 64], x_desc.layout)
    w_tiles = gl.allocate_shared_memory(dtype, [STAGES, 2 * BLOCK_N, 64], w_desc.layout)
    y_tile = gl.allocate_shared_memory(dtype, [BLOCK_M, BLOCK_N], y_desc.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1)
        mbarrier.init(free.index(stage), count=1)
    gl.warp_specialize(
        [
            (
                _products,
                (
                    y_desc, x_tiles, w_tiles, y_tile, ready, free, tiles, row_tiles,
                    N, K, BLOCK_M, BLOCK_N, STAGES, GROUP, WARPS,
                ),
            ),
            (
                _copies,
                (
                    x_desc, w_desc, x_tiles, w_tiles, ready, free, tiles, row_tiles,
                    N, K, BLOCK_M, BLOCK_N, STAGES, GROUP, PDL,
                ),
            ),
        ],
        [1],
        [40],
    )  # fmt: skip
