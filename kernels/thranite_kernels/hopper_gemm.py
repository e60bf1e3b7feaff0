"""y = x Wᵀ for 1 to 64 rows and large weights on Hopper: W read once, at nearly the rate that memory has.

A program takes some rows of the [N, K] weight, or for the products whose sum a norm takes a half of their columns, so
that every multiprocessor has one program and none waits for another. One warp copies W and x through tensor maps to a
ring of stages in shared memory, four multiply (W is the left operand: few rows of x cost little). Started while the
kernel before it runs, a program fills the ring with weights, and only then waits for x: memory is busy while norms and
activations run. (Warp specialisation: Bauer et al., SC 2011.)

Three results: x Wᵀ; silu(x Gᵀ) · (x Uᵀ) where W is [G; U]; or the products of two halves of the columns, in fp32, for
`rms_norm` to add. Measured on an H200 in docs/performance.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from .launch import Launch, cdiv, require, swizzled_map
from .target import Target, overlaps, target_of
from .work import Work

ROW_BLOCKS = (16, 32, 64)
"""Rows of x in shared memory: a variant each."""

MAX_ROWS = ROW_BLOCKS[-1]
CAPABILITY = 90
"""The only one with these products."""

HALF_TYPES = (torch.bfloat16, torch.float16)
PANEL = 64  # columns of a box: 128 bytes, as far as tensor maps swizzle
LEAST_BUSY = 0.7  # of the multiprocessors: 112 of 132 read at 0.92 of the rate; where cuBLAS leads was not measured
RING_BYTES = 210 << 10  # of shared memory; the rest is for the result's way to rows
# Registers a thread. Left to itself, Triton gives a kernel whose warps have roles all that a multiprocessor has, and
# nothing that begins early finds room beside it (64 rows, all of a layer but attention: 125.6 against 121.7 µs).
REGISTERS, GATED_REGISTERS = 96, 128
MOST_STAGES = 12


@dataclass(frozen=True, slots=True)
class HopperTiles:
    """How a product is cut."""

    rows: int  # of the weight (of each half) a program: a multiple of 16, at most 128
    parts: int = 1  # ranges of columns
    gated: bool = False

    @property
    def tile(self) -> int:
        """Rows in shared memory: what wgmma multiplies."""
        return 64 if self.rows <= 64 else 128

    @property
    def panels(self) -> int:
        """Boxes side by side a stage."""
        return 1 if self.gated else 2

    def stages(self, block_m: int) -> int:
        """As many as fit."""
        weights = self.tile * (2 if self.gated else 1)
        return min(RING_BYTES // ((weights + block_m) * PANEL * 2 * self.panels), MOST_STAGES)


@lru_cache(maxsize=4096)
def hopper_tiles(
    rows: int, width: int, depth: int, target: Target, *, parts: bool = False, gated: bool = False
) -> HopperTiles | None:
    """Tiles for x [rows, depth] and weights of `width` rows (of each half); None: cuBLAS is to take it.

    `parts`: the caller can add two. Not where a program had fewer rows of W than x three quarters of: x is read by
    every program.
    """
    if target.capability != CAPABILITY or not 1 <= rows <= MAX_ROWS or depth % (2 * PANEL) or width % 8:
        return None
    found = _fewest_rows(width, 1, target.num_sms, gated)
    if parts and not gated and (found is None or found.rows < 64):
        found = _fewest_rows(width, 2, target.num_sms, gated) or found
    if found is None or 4 * found.rows < 3 * row_block(rows):
        return None
    return found if programs(found, width) >= LEAST_BUSY * target.num_sms else None


def _fewest_rows(width: int, parts: int, num_sms: int, gated: bool) -> HopperTiles | None:
    """So that all programs run at once."""
    rows = cdiv(cdiv(width, num_sms // parts), 16) * 16
    return HopperTiles(rows, parts, gated) if rows <= 128 else None


def programs(tiles: HopperTiles, width: int) -> int:
    """How many there are."""
    return cdiv(width, tiles.rows) * tiles.parts


def row_block(rows: int) -> int:
    """The least of `ROW_BLOCKS` that has room."""
    return next(block for block in ROW_BLOCKS if rows <= block)


def tiles_for(x: torch.Tensor, weight: torch.Tensor, *, parts: bool = False, gated: bool = False) -> HopperTiles | None:
    """`hopper_tiles` for a product of 16-bit types whose rows tensor maps can read."""
    alike = x.dtype in HALF_TYPES and weight.dtype == x.dtype
    if not (alike and overlaps(x) and readable(x) and readable(weight)):
        return None
    rows, depth = x.shape
    width = weight.shape[0] // 2 if gated else weight.shape[0]
    return hopper_tiles(rows, width, depth, target_of(x.device), parts=parts, gated=gated)


def readable(matrix: torch.Tensor) -> bool:
    """By tensor map: steps of 16 bytes between rows, and a start at one."""
    return matrix.stride(1) == 1 and matrix.stride(0) % 8 == 0 and int(matrix.storage_offset()) % 8 == 0


def hopper_gemm(x: torch.Tensor, weight: torch.Tensor, tiles: HopperTiles) -> torch.Tensor:
    """x [M, K], M of 1 to 64, weight [N, K] (gated: [2N, K]); returns [M, N] in x's type, or with parts their products
    [parts, M, N] in fp32."""
    rows, width = x.shape[0], weight.shape[0] // (2 if tiles.gated else 1)
    if tiles.parts > 1:
        out = x.new_empty((tiles.parts, rows, width), dtype=torch.float32)
    else:
        out = x.new_empty((rows, width))
    hopper_gemm_launch(x, weight, tiles, out=out).run()
    return out


def hopper_gemm_launch(x: torch.Tensor, weight: torch.Tensor, tiles: HopperTiles, *, out: torch.Tensor) -> Launch:
    """The launch behind `hopper_gemm`."""
    from ._hopper_gemm import hopper_gemm_kernel  # Gluon takes its time to load, and few need it

    rows, depth = x.shape
    halves = 2 if tiles.gated else 1
    width = weight.shape[0] // halves
    require(1 <= rows <= MAX_ROWS, f"hopper_gemm: 1 to {MAX_ROWS} rows")
    require(weight.shape[1] == depth, "hopper_gemm: x and weight disagree on the inner size")
    step = PANEL * tiles.panels
    require(depth % step == 0, f"hopper_gemm: the inner size is not in steps of {step}")
    # One without a step would write its zeros before the kernel before has ended.
    require(depth >= step * tiles.parts, "hopper_gemm: more parts than steps")
    require(tiles.parts == 1 or not tiles.gated, "hopper_gemm: an activation is of sums, not of parts")
    require(0 < tiles.rows <= 128 and tiles.rows % 16 == 0, "hopper_gemm: 16 to 128 rows a program, in steps of 16")
    require(readable(x) and readable(weight), "hopper_gemm: rows must be contiguous, at multiples of 16 bytes")
    require(out.is_contiguous() and out.shape[-2:] == (rows, width), "hopper_gemm: result [M, N], contiguous")
    used = [box for box in (64, 32, 16) if tiles.rows & box] or [64]
    boxes = {box: swizzled_map(weight, [box, PANEL]) for box in used}
    arguments: dict[str, Any] = {f"w{box}": boxes.get(box, boxes[used[0]]) for box in (64, 32, 16)}
    block_m = row_block(rows)
    return Launch(
        hopper_gemm_kernel,
        (programs(tiles, width),),
        {
            **arguments,
            "x_desc": swizzled_map(x, [block_m, PANEL]),
            "y_ptr": out,
            "stride_y": out.stride(-2),
            "rows": rows,
        },
        {
            "N": width,
            "K": depth,
            "BLOCK_M": block_m,
            "ROWS": tiles.rows,
            "TILE": tiles.tile,
            "PARTS": tiles.parts,
            "HALVES": halves,
            "PANELS": tiles.panels,
            "STAGES": tiles.stages(block_m),
            "TOGETHER": 2 // tiles.panels,
            "PDL": overlaps(x),
        },
        num_warps=4,
        options={"maxnreg": GATED_REGISTERS if tiles.gated else REGISTERS},
    )


def hopper_gemm_reference(x: torch.Tensor, weight: torch.Tensor, tiles: HopperTiles) -> torch.Tensor:
    """The same in torch, fp64 inside; with parts their sum, [1, M, N]."""
    y = x.double() @ weight.double().T
    if tiles.gated:
        gate, up = (half.to(x.dtype).double() for half in y.chunk(2, dim=-1))
        return (torch.nn.functional.silu(gate) * up).to(x.dtype)
    return y.float()[None] if tiles.parts > 1 else y.to(x.dtype)


def hopper_gemm_work(rows: int, weight_rows: int, depth: int, tiles: HopperTiles) -> Work:
    """The weight and x read once from memory, the result written."""
    out = rows * weight_rows // (2 if tiles.gated else 1) * (4 * tiles.parts if tiles.parts > 1 else 2)
    return Work(bytes=2 * (weight_rows + rows) * depth + out, flops=2 * rows * weight_rows * depth)
