"""Gated linear units: out = act(x[:, :N]) · x[:, N:], with SiLU (SwiGLU), GELU (erf) or GELU (tanh)."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from ._glu import glu_kernel
from .launch import Launch, cdiv, require
from .target import overlaps
from .work import Work

Activation = Literal["silu", "gelu", "gelu_tanh"]
KINDS = get_args(Activation)


def glu(x: torch.Tensor, kind: Activation = "silu", *, out: torch.Tensor | None = None) -> torch.Tensor:
    """`x` [T, 2N], gate first then up; returns [T, N]."""
    if out is None:
        rows, double = x.shape
        out = x.new_empty(rows, double // 2)
    glu_launch(x, kind, out=out).run()
    return out


def glu_launch(x: torch.Tensor, kind: Activation, *, out: torch.Tensor) -> Launch:
    """The launch behind `glu`: 1,024 columns a program, 8 elements a thread (16-byte accesses in bf16)."""
    rows, double = x.shape
    stride_x, step_x = x.stride()
    stride_y, step_y = out.stride()
    width, block = double // 2, 1024
    require(double % 2 == 0 and step_x == step_y == 1, "glu: [T, 2N] with contiguous rows")
    require(kind in KINDS, "glu: unknown activation")
    return Launch(
        glu_kernel,
        (rows * cdiv(width, block),),
        {"x_ptr": x, "stride_x": stride_x, "y_ptr": out, "stride_y": stride_y},
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
