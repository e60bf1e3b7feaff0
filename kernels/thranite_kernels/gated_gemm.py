"""y = silu(x Gᵀ) · (x Uᵀ) for many rows on Hopper: a product and its activation in one, for W = [G; U].

Many rows run at the board's power limit, so what counts is energy: 256 rows of W a tile, as many as wgmma takes, and
nothing of gate and up in memory. A program a multiprocessor goes over tiles of 128 rows of x by 128 of y; one warp
copies by tensor map, a ring of stages ahead and beyond the tile, eight multiply. Thousands of rows are another
kernel's, in tiles of 192 and without a warp that only copies. (Persistent programs and warps with roles: Bauer et al.,
SC 2011; Kerr et al., CUTLASS.) Measured on an H200 in docs/performance.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .hopper_gemm import CAPABILITY, HALF_TYPES, PANEL, readable
from .launch import Launch, cdiv, require, swizzled_map
from .target import overlaps, target_of
from .work import Work

BLOCK_N = 128
"""Columns of y a tile: 256 rows of W, as many as wgmma takes."""
STAGES = 4  # of 48 KiB; y's tile takes 32


@dataclass(frozen=True, slots=True)
class Tiles:
    """Of one of the two kernels."""

    rows: int  # of x a tile
    box: int  # of them copied at once
    stages: int
    group: int  # rows of tiles that are computed column by column
    num_warps: int


SHORT = Tiles(128, 128, STAGES, 16, 8)
"""8,192 rows take 2,880 µs with 16 rows of tiles column by column and 2,925 with 8 (H200)."""
TALL = Tiles(192, 64, 3, 8, 4)
"""8,192 rows take 2,851 µs with 8 rows of tiles column by column and 2,897 with 22; 2,904 in short ones (another H200).
`num_warps` are those of one of three groups."""
TALL_ROWS = 4096
"""So many rows take 1,441 µs in tall tiles, 11 rows of them column by column, and 1,452 in short ones; 2,048 rows take
749 and 729."""


def tiles_of(rows: int) -> Tiles:
    """The kernel for so many rows."""
    return TALL if rows >= TALL_ROWS else SHORT


def takes(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether `gated_gemm` can: whole tiles of a 16-bit weight whose rows tensor maps can read, on Hopper."""
    return (
        x.dtype in HALF_TYPES
        and weight.dtype == x.dtype
        and weight.shape[0] % (2 * BLOCK_N) == 0
        and weight.shape[1] % PANEL == 0
        and weight.shape[1] >= STAGES * PANEL
        and overlaps(x)
        and target_of(x.device).capability == CAPABILITY
        and readable(x)
        and readable(weight)
    )


def evenness(rows: int, width: int, num_sms: int) -> float:
    """How much of what `num_sms` programs compute is used: the last round of tiles may be short, and so the last rows.
    `width`: columns of y."""
    block_m = tiles_of(rows).rows
    tiles = cdiv(rows, block_m) * cdiv(width, BLOCK_N)
    return rows * width / (cdiv(tiles, num_sms) * num_sms * block_m * BLOCK_N)


def gated_gemm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x [M, K], weight [2 N, K]; returns [M, N] in x's type."""
    out = x.new_empty((x.shape[0], weight.shape[0] // 2))
    gated_gemm_launch(x, weight, out=out).run()
    return out


def gated_gemm_launch(
    x: torch.Tensor, weight: torch.Tensor, *, out: torch.Tensor, tiles: Tiles | None = None
) -> Launch:
    """The launch behind `gated_gemm`; `tiles`: those of the number of rows, unless told."""
    rows, depth = x.shape
    width = weight.shape[0] // 2
    require(weight.shape[1] == depth, "gated_gemm: x and weight disagree on the inner size")
    require(depth % PANEL == 0 and depth >= STAGES * PANEL, f"gated_gemm: the inner size is not in steps of {PANEL}")
    require(weight.shape[0] % (2 * BLOCK_N) == 0, f"gated_gemm: halves of a weight in steps of {BLOCK_N} rows")
    require(readable(x) and readable(weight), "gated_gemm: rows must be contiguous, at multiples of 16 bytes")
    require(out.is_contiguous() and out.shape == (rows, width), "gated_gemm: result [M, N], contiguous")
    tiles = tiles or tiles_of(rows)
    count = cdiv(rows, tiles.rows) * (width // BLOCK_N)
    return Launch(
        _kernel(tiles),
        (min(count, target_of(x.device).num_sms),),
        {
            "x_desc": swizzled_map(x, [tiles.box, PANEL]),
            "w_desc": swizzled_map(weight, [BLOCK_N, PANEL]),
            "y_desc": swizzled_map(out, [tiles.box, BLOCK_N]),
            "rows": rows,
        },
        {
            "N": width,
            "K": depth,
            "BLOCK_N": BLOCK_N,
            "STAGES": tiles.stages,
            "GROUP": tiles.group,
            "PDL": overlaps(x),
            **({"BLOCK_M": tiles.rows} if tiles.rows == SHORT.rows else {}),
        },
        num_warps=tiles.num_warps,
    )


def _kernel(tiles: Tiles) -> Any:
    """Gluon takes its time to load, and few need it."""
    if tiles.rows == SHORT.rows:
        from ._gated_gemm import gated_gemm_kernel

        return gated_gemm_kernel
    from ._tall_gated_gemm import tall_gated_gemm_kernel

    return tall_gated_gemm_kernel


def gated_gemm_reference(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The same in torch, fp64 inside, gate and up rounded to x's type."""
    gate, up = (half.to(x.dtype).double() for half in (x.double() @ weight.double().T).chunk(2, dim=-1))
    return (torch.nn.functional.silu(gate) * up).to(x.dtype)


def gated_gemm_work(rows: int, width: int, depth: int, itemsize: int = 2) -> Work:
    """x and the weight read once, the result [rows, width] written."""
    return Work(bytes=itemsize * ((rows + 2 * width) * depth + rows * width), flops=4 * rows * width * depth)
