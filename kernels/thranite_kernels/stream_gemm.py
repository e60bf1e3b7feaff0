"""y = x Wᵀ (+ bias) for 1 to 16 rows and large weights: every multiprocessor reads an equal share of W from end to end.

The [N, K] weight is cut into blocks of rows and steps of columns, and all steps, in row-major order, into one share for
each program (Stream-K: Osama et al., 2023, arXiv 2301.03598). Shares are equal to a step whatever N and K are, so no
multiprocessor waits for another; a block that crosses a border is summed by the last program to arrive, in the order of
the programs: bits depend on the number of multiprocessors, not on timing. W is the left operand of the tensor cores'
product, so that few rows of x cost little.

Started while the kernel before it runs, a program copies its first weights to shared memory and only then waits for x:
that is where it gains on cuBLAS, which wins where that start does not count, and for more rows (docs/performance.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ._stream_gemm import stream_gemm_kernel
from .launch import Launch, cdiv, require, tensor_map
from .target import STREAM, StreamConfig, Target, overlaps, target_of

MAX_ROWS = 16
"""Rows of the tile of x."""


@dataclass(frozen=True, slots=True)
class StreamScratch:
    """Partial sums and arrival counters, shared by all products of one stream."""

    partial: torch.Tensor  # fp32 [2 · programs · BLOCK_N · MAX_ROWS]
    count: torch.Tensor  # int32, at least cdiv(N, BLOCK_N) elements, zero between launches

    @classmethod
    def allocate(
        cls,
        max_width: int,
        device: torch.device | str,
        *,
        config: StreamConfig = STREAM,
        target: Target | None = None,
    ) -> StreamScratch:
        """For outputs of up to `max_width` columns."""
        device = torch.device(device)
        programs = config.programs or (target or target_of(device)).num_sms
        return cls(
            torch.empty(2 * programs * config.block_n * MAX_ROWS, dtype=torch.float32, device=device),
            torch.zeros(cdiv(max_width, config.block_n), dtype=torch.int32, device=device),
        )


def streams(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether engines use `stream_gemm` here: few rows, 16-bit types, tensor maps at hand, 16-byte steps of rows."""
    aligned = weight.stride(1) == 1 and weight.stride(0) % 8 == 0 and int(weight.storage_offset()) % 8 == 0
    return overlaps(x) and x.shape[0] <= MAX_ROWS and weight.itemsize == 2 and weight.dtype == x.dtype and aligned


def stream_gemm(
    x: torch.Tensor,
    weight: torch.Tensor,
    scratch: StreamScratch,
    *,
    bias: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    config: StreamConfig = STREAM,
) -> torch.Tensor:
    """x [M, K] with M of 1 to 16, weight [N, K], bias [N]; returns [M, N]."""
    out = torch.empty(x.shape[0], weight.shape[0], dtype=x.dtype, device=x.device) if out is None else out
    stream_gemm_launch(x, weight, scratch, bias=bias, out=out, config=config).run()
    return out


def stream_gemm_launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    scratch: StreamScratch,
    *,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    config: StreamConfig = STREAM,
    target: Target | None = None,
) -> Launch:
    """The launch behind `stream_gemm`: one program a multiprocessor, or as many as `config` says."""
    rows, depth = x.shape
    width = weight.shape[0]
    require(1 <= rows <= MAX_ROWS, f"stream_gemm: 1 to {MAX_ROWS} rows")
    require(weight.shape[1] == depth, "stream_gemm: x and weight disagree on the inner size")
    require(depth >= 64 or config.ahead == 0, "stream_gemm: L2 is asked for 64 columns at a time")
    require(x.stride(1) == 1 and weight.stride(1) == 1 and out.stride(1) == 1, "stream_gemm: rows must be contiguous")
    blocks = cdiv(width, config.block_n)
    programs = config.programs or (target or target_of(x.device)).num_sms
    programs = min(programs, blocks * cdiv(depth, config.block_k))
    need = 2 * programs * config.block_n * MAX_ROWS
    require(scratch.partial.numel() >= need and scratch.count.numel() >= blocks, "stream_gemm: scratch too small")
    tiles = tensor_map(weight, list(weight.shape), list(weight.stride()), [config.block_n, config.block_k])
    return Launch(
        stream_gemm_kernel,
        (programs,),
        {
            "x_ptr": x,
            "stride_x": x.stride(0),
            "w_ptr": weight,
            "stride_w": weight.stride(0),
            "w_desc": tiles,
            "bias_ptr": bias,
            "y_ptr": out,
            "stride_y": out.stride(0),
            "part_ptr": scratch.partial,
            "count_ptr": scratch.count,
            "rows": rows,
        },
        {
            "N": width,
            "K": depth,
            "BLOCK_M": MAX_ROWS,
            "BLOCK_N": config.block_n,
            "BLOCK_K": config.block_k,
            "PROGRAMS": programs,
            "BIAS": bias is not None,
            "AHEAD": config.ahead,
            "STAGES": config.num_stages,
            "PDL": overlaps(x),
        },
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
