"""Gated activations of the MLP."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor

from thranite.models.spec import Activation

FUNCTIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    Activation.SILU: F.silu,
    Activation.GELU: F.gelu,
    Activation.GELU_TANH: lambda x: F.gelu(x, approximate="tanh"),
}


def gated(activation: Callable[[Tensor], Tensor], gate_up: Tensor) -> Tensor:
    """[T, 2 n] (gate, then up) → [T, n]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return activation(gate).mul_(up)
