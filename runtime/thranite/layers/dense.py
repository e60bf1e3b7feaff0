"""x Wᵀ + b with an unquantized weight, by the fastest of torch's ways for the shape."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from thranite_kernels.skinny_gemm import GemmScratch

SKINNY_ROWS = 8
# On a GPU, up to this many elements of weight, the kernel for few rows is level with cuBLAS or ahead (H200, bf16,
# Qwen3-0.6B's layer: 17.5 against 30.9 µs for 1 row, 21.4 against 24.0 µs for 8); beyond it cuBLAS leads by 5 to 30 %.
SKINNY_GPU_ELEMENTS = 10_000_000
SKINNY_GPU_ROWS = 16
HALF_TYPES = (torch.bfloat16, torch.float16)


def dense(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [T, K], weight [N, K] → [T, N]."""
    rows = x.shape[0]
    if weight.is_cuda:
        small = rows <= SKINNY_GPU_ROWS and weight.numel() <= SKINNY_GPU_ELEMENTS and weight.dtype in HALF_TYPES
        return skinny(x, weight, bias) if small else F.linear(x, weight, bias)
    if rows > SKINNY_ROWS or weight.dtype != torch.float32 or weight.device.type != "cpu" or not mkl_on_amd():
        return F.linear(x, weight, bias)
    if rows != 2 and weight.shape[0] < weight.shape[1]:
        return F.linear(x, weight, bias)
    columns = F.pad(x, (0, 0, 0, 1)) if rows == 1 else x
    result = torch.mm(weight, columns.t()).t()[:rows].contiguous()
    return result if bias is None else result.add_(bias)


def skinny(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The GPU's product for 1 to 16 rows."""
    from thranite_kernels.skinny_gemm import skinny_gemm

    return skinny_gemm(x, weight, gemm_scratch(weight.device), bias=bias)


@cache
def gemm_scratch(device: torch.device) -> GemmScratch:
    """One a device: products of one stream never overlap. Wide enough for every weight that `skinny` takes."""
    from thranite_kernels.skinny_gemm import GemmScratch

    return GemmScratch.allocate(SKINNY_GPU_ELEMENTS // 256, device)


@cache
def mkl_on_amd() -> bool:
    """Where `W @ xᵀ` beats `F.linear` for few rows, though both read the weight once.

    fp32, one thread, microseconds of `F.linear` and of `W @ xᵀ` (one row padded to two), W 3072 x 576 and 49152 x 576:
    AMD Zen 4, 1 row: 746 → 478, 10180 → 6324; 2 rows: 1280 → 383, 25178 → 6260; 8 rows: 1104 → 1012, 20623 → 14909;
    12 rows: 1228 → 2016. Intel Sapphire Rapids, 1 row: 459 → 1244, 7758 → 20680. Where W has fewer rows than columns
    (576 x 1536) only 2 rows gain: 368 → 206.
    """
    cpuinfo = Path("/proc/cpuinfo")
    return torch.backends.mkl.is_available() and cpuinfo.exists() and "AuthenticAMD" in cpuinfo.read_text()
