"""RMSNorm with fp32 accumulation (float64 for float64 models)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thranite.layers.communicator import ALONE, Communicator
from thranite.layers.module import Module


class RMSNorm(Module):
    """x / rms(x) * weight. `weight` is the multiplier itself.

    `unit_offset`: the checkpoint stores weight - 1 (Gemma); loading adds the one, in at least fp32 as the family's own
    code does, so that nothing is lost for half precision models.
    """

    def __init__(self, size: int, eps: float, *, unit_offset: bool, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.shape = (size,)
        self.eps = eps
        self.unit_offset = unit_offset
        kept = torch.promote_types(dtype, torch.float32) if unit_offset else dtype
        self.weight = nn.Parameter(torch.empty(size, dtype=kept, device=device), requires_grad=False)

    def load(self, source: Tensor) -> None:
        self.weight.copy_(source)
        if self.unit_offset:
            self.weight.add_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda and x.dtype != torch.float64:
            from thranite_kernels.rms_norm import rms_norm as kernel

            return kernel(x, self.weight, self.eps)
        return rms_norm(x, self.shape, self.weight, self.eps)

    def after_adding(self, added: Tensor | None, x: Tensor, ranks: Communicator = ALONE) -> Tensor:
        """Normalise x + added; the sum is kept in x. `added`: [T, size]; or on a GPU, for a model that is not split,
        fp32 [parts, T, size], to be added up. `ranks`: those of which each holds a part of `added`. One kernel on a
        GPU, with the sum over ranks where that pays; then x may be kept up in some rows only (`Communicator`)."""
        if added is None:
            return self(x)  # type: ignore[no-any-return]
        fused = ranks.all_reduce_norm(added, x, self.weight, self.eps)
        if fused is not None:
            return fused
        added = ranks.all_reduce(added)
        if x.is_cuda and x.dtype != torch.float64:
            from thranite_kernels.rms_norm import rms_norm as kernel

            return kernel(added, self.weight, self.eps, residual=x)
        return self(x.add_(added))  # type: ignore[no-any-return]


def rms_norm(x: Tensor, shape: tuple[int, ...], weight: Tensor, eps: float) -> Tensor:
    """Normalise the last dimension; a weight of higher precision than x lifts the whole computation to its own."""
    if weight.dtype == x.dtype:
        return F.rms_norm(x, shape, weight, eps)
    return F.rms_norm(x.to(weight.dtype), shape, weight, eps).to(x.dtype)
