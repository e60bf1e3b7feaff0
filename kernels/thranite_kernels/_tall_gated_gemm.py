# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc,attr-defined"
"""Device code of `gated_gemm` for thousands of rows, in Gluon: tiles of 192 rows, which read the weight a third less
often than those of 128.

Compiled for sm_90 alone. Three groups of four warps have 64 rows each. All of the register file is theirs, 168 a
thread of which 128 are results, so the first of them copies besides, a stage of the ring each step.
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

from ._gated_gemm import activated, copy_weights, place, write_tile
from ._hopper_gemm import copy_tile

GROUPS = gl.constexpr(3)
ROWS = gl.constexpr(64)  # of a group


@gluon.jit
def _copy_x(x_desc, row, step, ready, x_tiles, stage):
    for part in gl.static_range(GROUPS):
        at = (row * GROUPS + part) * ROWS
        copy_tile(x_desc, [at, step * 64], ready, x_tiles.index(stage * GROUPS + part))


@gluon.jit
def _copy_first(
    x_desc, w_desc, row, column, x_tiles, w_tiles, ready,
    N: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    """The ring's first round. Weights are copied before the wait for what the kernel before leaves, which is x."""
    for stage in gl.static_range(STAGES):
        copy_weights(w_desc, column, stage, ready.index(stage), w_tiles.index(stage), N, GROUPS * ROWS, BLOCK_N)
    if PDL:
        gl.inline_asm_elementwise("griddepcontrol.wait; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1)
    for stage in gl.static_range(STAGES):
        _copy_x(x_desc, row, stage, ready.index(stage), x_tiles, stage)


@gluon.jit
def _copy_next(
    x_desc, w_desc, tile, tiles, row_tiles, step, turn, x_tiles, w_tiles, ready, free,
    N: gl.constexpr, K: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr, GROUP: gl.constexpr,
):  # fmt: skip
    """Into the stage of the step before, which this group has done with, once the others have: what comes STAGES steps
    later, of this tile or the program's next."""
    ahead = step + STAGES - 1
    inside = ahead < K // 64
    to = gl.where(inside, tile, tile + gl.num_programs(0))
    if (turn > 0) & (to < tiles):
        row, column = place(to, row_tiles, N // BLOCK_N, GROUP)
        at = gl.where(inside, ahead, ahead - K // 64)
        stage = (turn - 1) % STAGES
        mbarrier.wait(free.index(stage), ((turn - 1) // STAGES) & 1)
        copy_weights(w_desc, column, at, ready.index(stage), w_tiles.index(stage), N, GROUPS * ROWS, BLOCK_N)
        _copy_x(x_desc, row, at, ready.index(stage), x_tiles, stage)


@gluon.jit
def _products(
    x_desc, w_desc, y_desc, x_tiles, w_tiles, y_tile, ready, free, tiles, row_tiles,
    N: gl.constexpr, K: gl.constexpr, BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr, GROUP: gl.constexpr, PDL: gl.constexpr, PART: gl.constexpr,
):  # fmt: skip
    """A group: its 64 rows of x times gate's and up's rows side by side, then silu(gate) times up, which is copied out
    while the next tile is begun."""
    dtype: gl.constexpr = x_tiles.dtype
    MMA: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 2 * BLOCK_N, 16]
    )
    row, column = place(gl.program_id(0), row_tiles, N // BLOCK_N, GROUP)
    if PART == 0:
        _copy_first(x_desc, w_desc, row, column, x_tiles, w_tiles, ready, N, BLOCK_N, STAGES, PDL)
    turn = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        row, column = place(tile, row_tiles, N // BLOCK_N, GROUP)
        acc = gl.zeros([ROWS, 2 * BLOCK_N], gl.float32, layout=MMA)
        for step in range(K // 64):
            stage = turn % STAGES
            mbarrier.wait(ready.index(stage), (turn // STAGES) & 1)
            x_tile = x_tiles.index(stage * GROUPS + PART)
            acc = warpgroup_mma(x_tile, w_tiles.index(stage).permute([1, 0]), acc, is_async=True)
            acc = warpgroup_mma_wait(num_outstanding=1, deps=[acc])
            # All but this step's have been done: the stage of the step before is free.
            if PART == 0:
                _copy_next(
                    x_desc, w_desc, tile, tiles, row_tiles, step, turn, x_tiles, w_tiles, ready, free,
                    N, K, BLOCK_N, STAGES, GROUP,
                )  # fmt: skip
            else:
                mbarrier.arrive(free.index((turn + STAGES - 1) % STAGES), count=1, pred=turn > 0)
            turn += 1
        acc = warpgroup_mma_wait(num_outstanding=0, deps=[acc])
        y = activated(acc, dtype, ROWS, BLOCK_N)
        tma.store_wait(0)  # of the tile before
        y_tile.store(y)
        fence_async_shared()
        write_tile(y_desc, [(row * GROUPS + PART) * ROWS, column * BLOCK_N], y_tile)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["rows"])
def tall_gated_gemm_kernel(
    x_desc,  # x [rows, K], boxes of 64 rows and 64 columns
    w_desc,  # W [2 N, K], gate before up, boxes of BLOCK_N rows and 64 columns
    y_desc,  # y [rows, N], boxes of 64 rows and BLOCK_N columns
    rows,
    N: gl.constexpr, K: gl.constexpr, BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr, GROUP: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    """Program p computes tiles p, p + programs, … What lies beyond the last row is read as zeros and not written."""
    BLOCK_M: gl.constexpr = GROUPS * ROWS
    dtype: gl.constexpr = x_desc.dtype
    row_tiles = (rows + BLOCK_M - 1) // BLOCK_M
    tiles = row_tiles * (N // BLOCK_N)
    x_tiles = gl.allocate_shared_memory(dtype, [STAGES * GROUPS, ROWS, 64], x_desc.layout)
    w_tiles = gl.allocate_shared_memory(dtype, [STAGES, 2 * BLOCK_N, 64], w_desc.layout)
    y_tiles = gl.allocate_shared_memory(dtype, [GROUPS, ROWS, BLOCK_N], y_desc.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1)
        mbarrier.init(free.index(stage), count=GROUPS - 1)
    gl.warp_specialize(
        [
            (
                _products,
                (
                    x_desc, w_desc, y_desc, x_tiles, w_tiles, y_tiles.index(0), ready, free, tiles, row_tiles,
                    N, K, BLOCK_N, STAGES, GROUP, PDL, 0,
                ),
            ),
            (
                _products,
                (
                    x_desc, w_desc, y_desc, x_tiles, w_tiles, y_tiles.index(1), ready, free, tiles, row_tiles,
                    N, K, BLOCK_N, STAGES, GROUP, PDL, 1,
                ),
            ),
            (
                _products,
                (
                    x_desc, w_desc, y_desc, x_tiles, w_tiles, y_tiles.index(2), ready, free, tiles, row_tiles,
                    N, K, BLOCK_N, STAGES, GROUP, PDL, 2,
                ),
            ),
        ],
        [4, 4],
        [168, 168],
    )  # fmt: skip
