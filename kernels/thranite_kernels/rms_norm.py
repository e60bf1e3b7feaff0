"""RMSNorm over the last dimension, optionally adding into the residual stream first.

    h = x + residual (rounded to the residual's dtype, written back)      y = h / sqrt(mean(h²) + eps) · w

`one_plus` uses (1 + w), the Gemma form. Statistics and products are fp32; the output is rounded once.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch

from ._rms_norm import rms_norm_kernel
from .launch import Launch, next_power_of_2, require
from .target import overlaps
from .work import Work

MAX_WIDTH = 32768
"""Widest row one program holds in registers."""


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float = 1e-6,
    *,
    residual: torch.Tensor | None = None,
    one_plus: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Normalise the rows of `x` [T, N] (any row stride); `residual` [T, N] is updated in place. Returns [T, N].

    `x` may be fp32 [parts, T, N], of which the sum over parts, rounded to the residual's type, is meant.
    """
    if out is None:
        out = torch.empty_like(x if residual is None else residual)
    rms_norm_launch(x, weight, eps, residual=residual, one_plus=one_plus, out=out).run()
    return out


def rms_norm_launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    residual: torch.Tensor | None,
    one_plus: bool,
    out: torch.Tensor,
) -> Launch:
    """The launch behind `rms_norm`: one program per row, about 8 to 16 elements a thread."""
    parts = x.shape[0] if x.dim() == 3 else 1
    rows, width = x.shape[-2:]
    require(parts == 1 or residual is not None, "rms_norm: parts are added for a residual")
    stride_x, step_x = x.stride()[-2:]
    stride_y, step_y = out.stride()
    stride_r, step_r = (0, 1) if residual is None else residual.stride()
    require(step_x == step_y == 1, "rms_norm: rows must be contiguous")
    require(weight.shape == (width,) and weight.is_contiguous(), "rms_norm: weight must be [N]")
    require(step_r == 1 and (residual is None or residual.shape == (rows, width)), "rms_norm: residual layout")
    require(x.dim() == 2 or (parts > 1 and x.is_contiguous()), "rms_norm: two parts and more, contiguous")
    constants, num_warps = _fixed(width, parts, residual is not None, one_plus, overlaps(x))
    return Launch(
        rms_norm_kernel,
        (rows,),
        {
            "x_ptr": x,
            "stride_x": stride_x,
            "residual_ptr": residual,
            "stride_r": stride_r,
            "weight_ptr": weight,
            "y_ptr": out,
            "stride_y": stride_y,
            "eps": eps,
            "rows": rows,
        },
        constants,
        num_warps=num_warps,
    )


@lru_cache(maxsize=1024)
def _fixed(width: int, parts: int, residual: bool, one_plus: bool, pdl: bool) -> tuple[Mapping[str, int], int]:
    """Constants and warps."""
    require(width <= MAX_WIDTH, f"rms_norm: rows wider than {MAX_WIDTH} are not supported")
    block = next_power_of_2(width)
    constants = {"N": width, "BLOCK": block, "PARTS": parts, "RESIDUAL": residual, "ONE_PLUS": one_plus, "PDL": pdl}
    return constants, min(max(block // 512, 1), 16)


def rms_norm_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float = 1e-6,
    *,
    residual: torch.Tensor | None = None,
    one_plus: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`(y, updated residual)` in torch, statistics in fp32, nothing written in place."""
    dtype = x.dtype if residual is None else residual.dtype
    h = x.float() if x.dim() == 2 else x.sum(0).to(dtype).float()
    added = None
    if residual is not None:
        added = (h + residual.float()).to(residual.dtype)
        h = added.float()
    scale = torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)
    return (h * scale * (weight.float() + (1.0 if one_plus else 0.0))).to(dtype), added


def rms_norm_work(rows: int, width: int, itemsize: int = 2, *, residual: bool = False) -> Work:
    """x read and y written, with the residual read and written too; weights once."""
    streams = 4 if residual else 2
    return Work(bytes=(streams * rows * width + width) * itemsize, flops=4 * rows * width)
