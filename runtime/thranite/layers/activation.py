"""Gated activations of the MLP."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from thranite.models.spec import Activation

FUNCTIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    Activation.SILU: F.silu,
    Activation.GELU: F.gelu,
    Activation.GELU_TANH: lambda x: F.gelu(x, approximate="tanh"),
}


def gated(activation: Activation, gate_up: Tensor) -> Tensor:
    """[T, 2 n] (gate, then up) → [T, n]."""
    if gate_up.is_cuda and gate_up.dtype != torch.float64:
        from thranite_kernels.glu import glu

        return glu(gate_up, activation.value)
    gate, up = gate_up.chunk(2, dim=-1)
    return FUNCTIONS[activation](gate).mul_(up)
