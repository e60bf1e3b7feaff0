"""y = silu(x Gᵀ) · (x Uᵀ) for many rows on Hopper: a product and its activation in one, for W = [G; U].

Many rows run at the board's power limit, so what counts is energy: 256 rows of W a tile, as many as wgmma takes, and
nothing of gate and up in memory. A program a multiprocessor goes over tiles of 128 rows of x by 128 of y; one warp
copies by tensor map, a ring of stages ahead and beyond the tile, eight multiply. (Persistent programs and warps with
roles: Bauer et al., SC 2011; Kerr et al., CUTLASS.) Measured on an H200 in docs/performance.md.
"""

from __future__ import annotations

import torch

from .hopper_gemm import CAPABILITY, HALF_TYPES, PANEL, readable
from .launch import Launch, cdiv, require, swizzled_map
from .target import overlaps, target_of
from .work import Work

BLOCK_M = BLOCK_N = 128
STAGES = 4  # of 48 KiB; y's tile takes 32
GROUP = 16
"""Rows of tiles that are computed column by column: 8,192 rows take 2,880 µs with 16 and 2,925 with 8 (H200)."""


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
    tiles = cdiv(rows, BLOCK_M) * cdiv(width, BLOCK_N)
    return rows * width / (cdiv(tiles, num_sms) * num_sms * BLOCK_M * BLOCK_N)


def gated_gemm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x [M, K], weight [2 N, K]; returns [M, N] in x's type."""
    out = x.new_empty((x.shape[0], weight.shape[0] // 2))
    gated_gemm_launch(x, weight, out=out).run()
    return out


def gated_gemm_launch(x: torch.Tensor, weight: torch.Tensor, *, out: torch.Tensor) -> Launch:
    """The launch behind `gated_gemm`."""
    from ._gated_gemm import gated_gemm_kernel  # Gluon takes its time to load, and few need it

    rows, depth = x.shape
    width = weight.shape[0] // 2
    require(weight.shape[1] == depth, "gated_gemm: x and weight disagree on the inner size")
    require(depth % PANEL == 0 and depth >= STAGES * PANEL, f"gated_gemm: the inner size is not in steps of {PANEL}")
    require(weight.shape[0] % (2 * BLOCK_N) == 0, f"gated_gemm: halves of a weight in steps of {BLOCK_N} rows")
    require(readable(x) and readable(weight), "gated_gemm: rows must be contiguous, at multiples of 16 bytes")
    require(out.is_contiguous() and out.shape == (rows, width), "gated_gemm: result [M, N], contiguous")
    tiles = cdiv(rows, BLOCK_M) * (width // BLOCK_N)
    return Launch(
        gated_gemm_kernel,
        (min(tiles, target_of(x.device).num_sms),),
        {
            "x_desc": swizzled_map(x, [BLOCK_M, PANEL]),
            "w_desc": swizzled_map(weight, [BLOCK_N, PANEL]),
            "y_desc": swizzled_map(out, [BLOCK_M, BLOCK_N]),
            "rows": rows,
        },
        {
            "N": width,
            "K": depth,
            "BLOCK_M": BLOCK_M,
            "BLOCK_N": BLOCK_N,
            "STAGES": STAGES,
            "GROUP": GROUP,
            "PDL": overlaps(x),
        },
        num_warps=8,
    )


def gated_gemm_reference(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The same in torch, fp64 inside, gate and up rounded to x's type."""
    gate, up = (half.to(x.dtype).double() for half in (x.double() @ weight.double().T).chunk(2, dim=-1))
    return (torch.nn.functional.silu(gate) * up).to(x.dtype)


def gated_gemm_work(rows: int, width: int, depth: int, itemsize: int = 2) -> Work:
    """x and the weight read once, the result [rows, width] written."""
    return Work(bytes=itemsize * ((rows + 2 * width) * depth + rows * width), flops=4 * rows * width * depth)
