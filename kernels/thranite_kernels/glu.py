"""Gated linear units: out = act(x[:, :N]) · x[:, N:], with SiLU (SwiGLU), GELU (erf) or GELU (tanh)."""

from __future__ import annotations

from typing import Literal

import torch

from ._glu import glu_kernel
from .launch import Launch, cdiv, require
from .target import overlaps
from .work import Work

Activation = Literal["silu", "gelu", "gelu_tanh"]


def glu(x: torch.Tensor, kind: Activation = "silu", *, out: torch.Tensor | None = None) -> torch.Tensor:
    """`x` [T, 2N], gate first then up; returns [T, N]."""
    out = torch.empty(x.shape[0], x.shape[1] // 2, dtype=x.dtype, device=x.device) if out is None else out
    glu_launch(x, kind, out=out).run()
    return out


def glu_launch(x: torch.Tensor, kind: Activation, *, out: torch.Tensor) -> Launch:
    """The launch behind `glu`: 1,024 columns a program, 8 elements a thread (16-byte accesses in bf16)."""
    rows, double = x.shape
    width = double // 2
    require(double % 2 == 0 and x.stride(1) == 1 and out.stride(1) == 1, "glu: [T, 2N] with contiguous rows")
    require(kind in ("silu", "gelu", "gelu_tanh"), f"glu: unknown activation {kind!r}")
    block = 1024
    return Launch(
        glu_kernel,
        (rows * cdiv(width, block),),
        {"x_ptr": x, "stride_x": x.stride(0), "y_ptr": out, "stride_y": out.stride(0)},
        {"N": width, "BLOCK": block, "KIND": kind, "PDL": overlaps(x)},
    )


def glu_reference(x: torch.Tensor, kind: Activation = "silu") -> torch.Tensor:
    """The same in torch, fp32 inside."""
    gate, up = x.float().chunk(2, dim=-1)
    if kind == "silu":
        active = torch.nn.functional.silu(gate)
    else:
        active = torch.nn.functional.gelu(gate, approximate="tanh" if kind == "gelu_tanh" else "none")
    return (active * up).to(x.dtype)


def glu_work(rows: int, width: int, itemsize: int = 2) -> Work:
    """Two halves read, one written; about 8 operations an element."""
    return Work(bytes=3 * rows * width * itemsize, flops=8 * rows * width)
