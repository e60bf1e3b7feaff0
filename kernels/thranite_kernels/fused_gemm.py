"""A layer's products with what stands around them, for 1 to 256 rows and small weights, where launches cost most.

    gemm_add:   h += x Wᵀ (+ bias), and of h the terms of an RMSNorm: h · w, unscaled, and sums of h²
    norm_gemm:  y = RMSNorm(h) Wᵀ (+ bias) from those terms, or act(gate) · up of its two halves

A norm's scale is one factor a row, so it may follow the product. h · w is rounded once, as `rms_norm` rounds its
result; the scale, gate, up and what is added to h are never rounded. In fp16 an unscaled h · w may exceed the type:
this is for bf16 alone.

Splits are added in a fixed order by the last of their programs: bits depend on the table, not on timing or other rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ._fused_gemm import gemm_add_kernel, norm_gemm_kernel
from .glu import Activation, glu_reference
from .launch import Launch, cdiv, next_power_of_2, require
from .target import FusedConfig, fused_config, overlaps
from .work import Work

MAX_ROWS = 256
MAX_SPLIT = 8


@dataclass(frozen=True, slots=True)
class FusedScratch:
    """Partial sums and arrival counters, shared by all calls of `gemm_add` in one stream."""

    partial: torch.Tensor  # fp32, at least SPLIT_K · M · N elements, both sizes padded to tiles
    count: torch.Tensor  # int32, at least one element a tile, zero between launches

    @classmethod
    def allocate(cls, width: int, device: torch.device | str, *, rows: int = MAX_ROWS) -> FusedScratch:
        """For up to `rows` rows of up to `width` columns, in tiles of up to 128 by 128."""
        rows, width = cdiv(rows, 128) * 128, cdiv(width, 128) * 128
        return cls(
            torch.empty(MAX_SPLIT * rows * width, dtype=torch.float32, device=device),
            torch.zeros(rows * width // 256, dtype=torch.int32, device=device),
        )


@dataclass(frozen=True, slots=True)
class NormTerms:
    """An RMSNorm of h [M, N] in two factors."""

    scaled: torch.Tensor  # h · w [M, N]
    squares: torch.Tensor  # fp32 [M, parts], sums of h² over parts of a row

    @classmethod
    def allocate(cls, h: torch.Tensor, config: FusedConfig) -> NormTerms:
        """What a `gemm_add` into `h` writes."""
        rows, width = h.shape
        parts = cdiv(width, config.block_n)
        return cls(
            torch.empty(rows, width, dtype=h.dtype, device=h.device),
            torch.empty(rows, parts, dtype=torch.float32, device=h.device),
        )


def gemm_add(
    x: torch.Tensor,
    weight: torch.Tensor,
    h: torch.Tensor,
    norm: torch.Tensor,
    scratch: FusedScratch,
    *,
    bias: torch.Tensor | None = None,
    config: FusedConfig | None = None,
) -> NormTerms:
    """x [M, K] with M of 1 to 256, weight [N, K], norm [N]; h [M, N] is updated in place."""
    config = config or fused_config("add", x.shape[0])
    terms = NormTerms.allocate(h, config)
    gemm_add_launch(x, weight, h, norm, scratch, bias=bias, out=terms, config=config).run()
    return terms


def norm_gemm(
    terms: NormTerms,
    eps: float,
    weight: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    activation: Activation | None = None,
    out: torch.Tensor | None = None,
    config: FusedConfig | None = None,
) -> torch.Tensor:
    """Of M rows, 1 to 256, with K columns; weight [N, K] → [M, N]; with an activation [2 N, K], gate first."""
    x = terms.scaled
    width = weight.shape[0] // (1 if activation is None else 2)
    out = torch.empty(x.shape[0], width, dtype=x.dtype, device=x.device) if out is None else out
    norm_gemm_launch(terms, eps, weight, bias=bias, activation=activation, out=out, config=config).run()
    return out


def gemm_add_launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    h: torch.Tensor,
    norm: torch.Tensor,
    scratch: FusedScratch,
    *,
    bias: torch.Tensor | None,
    out: NormTerms,
    config: FusedConfig | None = None,
) -> Launch:
    """The launch behind `gemm_add`."""
    config = config or fused_config("add", x.shape[0])
    width = weight.shape[0]
    _check(x, weight, h, width)
    parts, blocks = cdiv(width, config.block_n), cdiv(x.shape[0], config.block_m)
    require(norm.shape == (width,) and norm.is_contiguous(), f"gemm_add: norm must be [{width}]")
    require(out.scaled.shape == h.shape and out.scaled.is_contiguous(), "gemm_add: scaled must be as h, contiguous")
    require(out.squares.shape == (x.shape[0], parts) and out.squares.is_contiguous(), "gemm_add: parts of squares")
    need = config.split_k * parts * blocks * config.block_m * config.block_n
    enough = scratch.partial.numel() >= need and scratch.count.numel() >= parts * blocks
    require(config.split_k == 1 or enough, "gemm_add: scratch too small")
    return Launch(
        gemm_add_kernel,
        (parts, config.split_k, blocks),
        {
            "x_ptr": x,
            "stride_x": x.stride(0),
            "w_ptr": weight,
            "stride_w": weight.stride(0),
            "bias_ptr": bias,
            "y_ptr": h,
            "stride_y": h.stride(0),
            "norm_ptr": norm,
            "scaled_ptr": out.scaled,
            "squares_ptr": out.squares,
            "part_ptr": scratch.partial,
            "count_ptr": scratch.count,
            "rows": x.shape[0],
        },
        {"N": width, "SPLIT_K": config.split_k, **_constants(x, weight, bias, config)},
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def norm_gemm_launch(
    terms: NormTerms,
    eps: float,
    weight: torch.Tensor,
    *,
    bias: torch.Tensor | None,
    activation: Activation | None,
    out: torch.Tensor,
    config: FusedConfig | None = None,
) -> Launch:
    """The launch behind `norm_gemm`."""
    x, squares = terms.scaled, terms.squares
    config = config or fused_config("norm" if activation is None else "glu", x.shape[0])
    pair = 1 if activation is None else 2
    width = weight.shape[0] // pair
    _check(x, weight, out, width)
    require(weight.shape[0] == pair * width, "norm_gemm: gate and up must be as large as each other")
    require(squares.shape[0] == x.shape[0] and squares.is_contiguous(), "norm_gemm: rows of squares")
    require(config.split_k == 1, "norm_gemm: programs do not share tiles")
    parts = squares.shape[1]
    return Launch(
        norm_gemm_kernel,
        (cdiv(width, config.block_n // pair), cdiv(x.shape[0], config.block_m)),
        {
            "x_ptr": x,
            "stride_x": x.stride(0),
            "squares_ptr": squares,
            "w_ptr": weight,
            "stride_w": weight.stride(0),
            "bias_ptr": bias,
            "y_ptr": out,
            "stride_y": out.stride(0),
            "eps": eps,
            "rows": x.shape[0],
        },
        {
            "N": width,
            "PARTS": parts,
            "BLOCK_PARTS": next_power_of_2(parts),
            "ACTIVATION": activation or "none",
            **_constants(x, weight, bias, config),
        },
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def _check(x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, width: int) -> None:
    require(1 <= x.shape[0] <= MAX_ROWS, f"fused_gemm: 1 to {MAX_ROWS} rows")
    require(weight.shape[1] == x.shape[1] and y.shape == (x.shape[0], width), "fused_gemm: sizes disagree")
    require(x.stride(1) == 1 and weight.stride(1) == 1 and y.stride(1) == 1, "fused_gemm: rows must be contiguous")
    require(weight.numel() < 2**31, "fused_gemm: the weight is too large")


def _constants(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, config: FusedConfig
) -> dict[str, int | bool]:
    return {
        "K": x.shape[1],
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "BIAS": bias is not None,
        "AHEAD": config.ahead if _in_pieces(weight, config.ahead) else 0,
        "PDL": overlaps(x) and config.early,
    }


def _in_pieces(weight: torch.Tensor, columns: int) -> bool:
    """Whether L2 can be asked for that many columns: in multiples of 16 bytes, within a row."""
    aligned = weight.stride(0) % 8 == 0 and int(weight.storage_offset()) % 8 == 0 and weight.shape[1] % 8 == 0
    return weight.itemsize == 2 and aligned and columns <= weight.shape[1]


def gemm_add_reference(
    x: torch.Tensor, weight: torch.Tensor, h: torch.Tensor, norm: torch.Tensor, bias: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """In float64: the updated h, rounded to its type, h times `norm`, and its squares' sums [M]. Nothing is written."""
    total = h.double() + x.double() @ weight.double().T
    total = (total if bias is None else total + bias.double()).to(h.dtype).double()
    return total, total * norm.double(), total.square().sum(-1)


def norm_gemm_reference(
    terms: NormTerms,
    eps: float,
    weight: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    activation: Activation | None = None,
) -> torch.Tensor:
    """The same in float64, but for the activation in fp32."""
    x = terms.scaled.double()
    scale = torch.rsqrt(terms.squares.double().sum(-1, keepdim=True) / x.shape[1] + eps)
    y = x @ weight.double().T * scale
    y = y if bias is None else y + bias.double()
    return y if activation is None else glu_reference(y, activation)


def fused_gemm_work(rows: int, width: int, depth: int, itemsize: int = 2, *, gated: bool = False) -> Work:
    """The weights read once, x and y moved once; `gated`: `width` columns of gate and up each. Not counted is what the
    kernel before has left in L2: a norm's terms, and the stream that `gemm_add` updates."""
    weights = (2 if gated else 1) * width * depth
    return Work(bytes=(weights + rows * (width + depth)) * itemsize, flops=2 * rows * weights)
