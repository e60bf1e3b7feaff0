"""x Wᵀ + b with an unquantized weight, by the fastest of torch's ways for the shape."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from thranite.layers.tuned_products import HALF_TYPES, product_by_rule, tuned_product

if TYPE_CHECKING:
    from thranite_kernels.skinny_gemm import GemmScratch
    from thranite_kernels.stream_gemm import StreamScratch

SKINNY_ROWS = 8
# On a GPU, up to this many elements of weight, `skinny_gemm` is level with cuBLAS or ahead (H200, bf16, Qwen3-0.6B's
# layer: 17.5 against 30.9 µs for 1 row, 21.4 against 24.0 µs for 8). Beyond it `stream_gemm` is, as it begins early
# (H100, a layer of llama-8b: 215 against 222 µs for 1 row, 220 against 227 µs for 16), and on Hopper `hopper_gemm`
# for up to 64 rows (H200, all of a layer but attention: 115.6 and 121.7 µs for 32 and 64 rows, cuBLAS 128.1 and 130.9).
SKINNY_GPU_ELEMENTS = 10_000_000
SKINNY_GPU_ROWS = 16
HOPPER_ROWS = 64
COMPARED_ELEMENTS = 8_000_000  # of a weight: qwen3-0.6b's layers', of up to 6 million, gained nothing on an H200
STREAM_WIDTH = 1 << 20  # most rows of a weight: no vocabulary is larger


def dense(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [T, K], weight [N, K] → [T, N]."""
    rows = x.shape[0]
    if weight.is_cuda:
        own = few_rows(x, weight, bias)
        return cublas_product(x, weight, bias) if own is None else own
    if rows > SKINNY_ROWS or weight.dtype != torch.float32 or weight.device.type != "cpu" or not mkl_on_amd():
        return F.linear(x, weight, bias)
    if rows != 2 and weight.shape[0] < weight.shape[1]:
        return F.linear(x, weight, bias)
    columns = F.pad(x, (0, 0, 0, 1)) if rows == 1 else x
    result = torch.mm(weight, columns.t()).t()[:rows].contiguous()
    return result if bias is None else result.add_(bias)


def add_dense(x: Tensor, weight: Tensor, stream: Tensor) -> None:
    """x [T, K], weight [N, K]: `stream` [T, N] += x Wᵀ, in the product itself and rounded once. For many rows."""
    tuned = tuned_product(x, weight, stream) if weight.is_cuda and comparable(x, weight) else None
    if tuned is None:
        product_by_rule(x, weight, stream)


def dense_parts(x: Tensor, weight: Tensor) -> Tensor | None:
    """x [T, K], weight [N, K] → fp32 [parts, T, N], whose sum over the parts is x Wᵀ, for `rms_norm` to add. None:
    there is nothing to gain."""
    return _hopper_product(x, weight, parts=True)


def gated_dense(x: Tensor, weight: Tensor) -> Tensor | None:
    """x [T, K], weight [2 N, K] → silu of the first half's product times the second's, [T, N]; None: not in one."""
    return _hopper_product(x, weight, gated=True)


def few_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """A GPU's product for few rows, in a 16-bit type; None: cuBLAS is to take it.

    Up to 16 rows q, k, v and o (`Linear.follows_attention`) stay with `stream_gemm`: its programs leave room for one of
    decode attention's beside each of theirs, and ask for fewer weights while attention still reads. Between
    `hopper_gemm`s a row of 32,768 keys takes 44 µs longer than one of 1,024, between these 33 (a layer of llama-8b on
    an H200).
    """
    if x.shape[0] > SKINNY_GPU_ROWS:
        return None if bias is not None else _hopper_product(x, weight)
    if weight.dtype not in HALF_TYPES:
        return None
    from thranite_kernels.skinny_gemm import skinny_gemm
    from thranite_kernels.stream_gemm import stream_gemm, streams

    if weight.numel() <= SKINNY_GPU_ELEMENTS:
        return skinny_gemm(x, weight, gemm_scratch(weight.device), bias=bias)
    return stream_gemm(x, weight, stream_scratch(weight.device), bias=bias) if streams(x, weight) else None


def _hopper_product(x: Tensor, weight: Tensor, *, parts: bool = False, gated: bool = False) -> Tensor | None:
    if not x.is_cuda or x.shape[0] > HOPPER_ROWS or weight.numel() <= SKINNY_GPU_ELEMENTS:
        return None
    from thranite_kernels.hopper_gemm import hopper_gemm, tiles_for

    tiles = tiles_for(x, weight, parts=parts, gated=gated)
    return None if tiles is None or (parts and tiles.parts == 1) else hopper_gemm(x, weight, tiles)


def cublas_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A GPU's product by the algorithm found fastest, where several were compared, or by cuBLAS's rule."""
    tuned = tuned_product(x, weight) if bias is None and comparable(x, weight) else None
    return F.linear(x, weight, bias) if tuned is None else tuned


def comparable(x: Tensor, weight: Tensor) -> bool:
    """Whether cuBLAS's choice is worth a comparison."""
    return x.shape[0] > SKINNY_GPU_ROWS and weight.numel() >= COMPARED_ELEMENTS


@cache
def gemm_scratch(device: torch.device) -> GemmScratch:
    """One a device: products of one stream never overlap. Wide enough for every weight that `skinny_gemm` takes."""
    from thranite_kernels.skinny_gemm import GemmScratch

    return GemmScratch.allocate(SKINNY_GPU_ELEMENTS // 256, device)


@cache
def stream_scratch(device: torch.device) -> StreamScratch:
    """One a device, as above, for every weight that `stream_gemm` takes."""
    from thranite_kernels.stream_gemm import StreamScratch

    return StreamScratch.allocate(STREAM_WIDTH, device)


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
