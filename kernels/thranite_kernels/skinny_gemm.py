"""y = x Wᵀ (+ bias) for 1 to 16 rows, where reading W is all the work. Sums of splits are added in a fixed order.

One row goes through fp32 registers; more rows through the tensor cores, padded to 16. cuBLAS takes everything else:
docs/performance.md says where which of them wins.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ._skinny_gemm import skinny_dot_kernel, skinny_vector_kernel
from .launch import Launch, cdiv, require
from .target import GemmConfig, gemm_config, overlaps, target_of
from .work import Work

MAX_ROWS = 16


@dataclass(frozen=True, slots=True)
class GemmScratch:
    """Partial sums and arrival counters, shared by all products of one stream."""

    partial: torch.Tensor  # fp32, at least SPLIT_K · 16 · N elements
    count: torch.Tensor  # int32, at least cdiv(N, BLOCK_N) elements, zero between launches

    @classmethod
    def allocate(cls, max_width: int, device: torch.device | str, *, max_split: int = 64) -> GemmScratch:
        """For outputs of up to `max_width` columns; one row may take `max_split` splits, 16 rows take 8 at most."""
        size = max(max_split, 8 * MAX_ROWS) * max_width
        return cls(
            torch.empty(size, dtype=torch.float32, device=device),
            torch.zeros(cdiv(max_width, 4), dtype=torch.int32, device=device),
        )


def skinny_gemm(
    x: torch.Tensor,
    weight: torch.Tensor,
    scratch: GemmScratch,
    *,
    bias: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    config: GemmConfig | None = None,
) -> torch.Tensor:
    """x [M, K] with M of 1 to 16, weight [N, K], bias [N]; returns [M, N]."""
    out = torch.empty(x.shape[0], weight.shape[0], dtype=x.dtype, device=x.device) if out is None else out
    skinny_gemm_launch(x, weight, scratch, bias=bias, out=out, config=config).run()
    return out


def skinny_gemm_launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    scratch: GemmScratch,
    *,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    config: GemmConfig | None = None,
) -> Launch:
    """The launch behind `skinny_gemm`."""
    rows, depth = x.shape
    width = weight.shape[0]
    require(1 <= rows <= MAX_ROWS, f"skinny_gemm: 1 to {MAX_ROWS} rows")
    require(weight.shape[1] == depth, "skinny_gemm: x and weight disagree on the inner size")
    require(x.stride(1) == 1 and weight.stride(1) == 1 and out.stride(1) == 1, "skinny_gemm: rows must be contiguous")
    config = config or gemm_config(target_of(x.device), rows, width, depth)
    blocks, block_m = cdiv(width, config.block_n), 16 if config.dot else 1
    require(config.dot or rows == 1, "skinny_gemm: the register variant takes one row")
    if config.split_k > 1:
        need = config.split_k * block_m * width
        require(scratch.partial.numel() >= need and scratch.count.numel() >= blocks, "skinny_gemm: scratch too small")
    args = {
        "x_ptr": x,
        "stride_x": x.stride(0),
        "w_ptr": weight,
        "stride_w": weight.stride(0),
        "bias_ptr": bias,
        "y_ptr": out,
        "stride_y": out.stride(0),
        "part_ptr": scratch.partial,
        "count_ptr": scratch.count,
        "rows": rows,
    }
    constants = {
        "N": width,
        "K": depth,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "SPLIT_K": config.split_k,
        "BIAS": bias is not None,
        # With tensor cores an early start costs: Qwen3-0.6B's layer, 8 rows, H100: 39.8 against 34.6 µs.
        "PDL": overlaps(x) and not config.dot,
    }
    grid = (blocks, config.split_k)
    if config.dot:
        constants["BLOCK_M"] = block_m
        return Launch(skinny_dot_kernel, grid, args, constants, config.num_warps, config.num_stages)
    for name in ("stride_x", "stride_y", "rows"):
        del args[name]
    return Launch(skinny_vector_kernel, grid, args, constants, config.num_warps, config.num_stages)


def skinny_gemm_reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The same in float64."""
    y = x.double() @ weight.double().T
    return y if bias is None else y + bias.double()


def skinny_gemm_work(rows: int, width: int, depth: int, itemsize: int = 2) -> Work:
    """The weights read once, x and y moved once."""
    return Work(bytes=(width * depth + rows * (width + depth)) * itemsize, flops=2 * rows * width * depth)
