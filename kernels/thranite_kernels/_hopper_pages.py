# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc,attr-defined"
"""Pages of a cache in the shared memory of Hopper's attention kernels, in Gluon: copies by tensor map."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from ._hopper_gemm import copy_tile

PAGE = gl.constexpr(64)
NO_SCORE = gl.constexpr(-1.0e30)


if hasattr(gl.shared_memory_descriptor, "reinterpret"):

    @gluon.jit
    def as_tile(tile, SHAPE: gl.constexpr, LAYOUT: gl.constexpr):
        return tile.reinterpret(tile.dtype, SHAPE, LAYOUT)

else:  # until Triton 3.7

    @gluon.jit
    def as_tile(tile, SHAPE: gl.constexpr, LAYOUT: gl.constexpr):
        return tile._reinterpret(tile.dtype, SHAPE, LAYOUT)


@gluon.jit
def copy_page(
    kv_desc, page, head, keys, ready, k_tiles, v_tiles, stage, live, KV_HEADS: gl.constexpr, PANELS: gl.constexpr
):
    """The page's first `keys` keys and values into a stage, as its last rows. The rows before them are zeros, as they
    lie outside of the page: what nobody wrote, or another sequence, must not meet a weight of 0."""
    mbarrier.expect(ready, 2 * PANELS * PAGE * 128, pred=live)
    BOX: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)
    for panel in gl.static_range(PANELS):
        at = stage * PANELS + panel
        row = keys - PAGE
        copy_tile(
            kv_desc, [page, head, row, panel * 64], ready, as_tile(k_tiles.index(at), [1, 1, PAGE, 64], BOX), pred=live
        )
        copy_tile(
            kv_desc,
            [page, KV_HEADS + head, row, panel * 64],
            ready,
            as_tile(v_tiles.index(at), [1, 1, PAGE, 64], BOX),
            pred=live,
        )
