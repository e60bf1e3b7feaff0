"""A decoder's layers in six kernels each, where ten and more cost a step its time: few rows of small weights on a GPU.

[norm and q, k, v] [rope, cache] [attention] [out, added] [norm, gate, up, activation] [down, added], in place of a
kernel for each norm, product and activation (`thranite_kernels.fused_gemm`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from thranite.attention.base import AttentionBackend, AttentionBatch
from thranite.layers.dense import SKINNY_GPU_ELEMENTS
from thranite.layers.linear import Linear, UnquantizedMethod
from thranite.layers.norm import RMSNorm
from thranite.models.spec import Activation

if TYPE_CHECKING:
    from thranite_kernels.fused_gemm import FusedScratch

FUSED_ROWS = range(33, 65)  # where they are faster, see the table in `thranite_kernels.target`


class Attend(Protocol):
    """Attention itself."""

    def __call__(self, qkv: Tensor, batch: AttentionBatch, backend: AttentionBackend) -> Tensor:
        """[T, (heads + 2 kv heads) · head_dim] → [T, heads · head_dim]."""


@dataclass(frozen=True, slots=True)
class LayerParts:
    """What a layer without sandwich norms is made of."""

    attention_norm: RMSNorm
    qkv: Linear
    attend: Attend
    out: Linear
    mlp_norm: RMSNorm
    gate_up: Linear
    down: Linear
    activation: Activation

    @property
    def fusable(self) -> bool:
        """Small weights as the checkpoint has them, whole, in bf16: an unscaled norm may exceed fp16."""
        return all(
            isinstance(linear.method, UnquantizedMethod)
            and linear.weight.dtype == torch.bfloat16
            and linear.weight.numel() <= SKINNY_GPU_ELEMENTS
            and linear.communicator.size == 1
            for linear in (self.qkv, self.out, self.gate_up, self.down)
        )


class FusedLayers:
    """All layers of a model; `takes` says when to run them so."""

    def __init__(self, layers: Sequence[LayerParts], final_norm: RMSNorm) -> None:
        self._layers = layers
        self._following = [*(layer.attention_norm for layer in layers[1:]), final_norm]
        self._fusable = all(layer.fusable for layer in layers)

    def takes(self, x: Tensor) -> bool:
        """Whether the stream `x` [T, hidden] is to go this way."""
        return self._fusable and x.is_cuda and len(x) in FUSED_ROWS

    def run(self, x: Tensor, batch: AttentionBatch, backend: AttentionBackend) -> None:
        """Bring the stream `x` [T, hidden], updated in place, through all layers."""
        from thranite_kernels.fused_gemm import gemm_add, norm_gemm

        scratch, terms = fused_scratch(x.device, x.shape[1]), None
        for layer, following in zip(self._layers, self._following, strict=True):
            qkv, out, gate_up, down = layer.qkv, layer.out, layer.gate_up, layer.down
            if terms is None:  # no product has left the first norm's terms
                rows = qkv(layer.attention_norm(x))
            else:
                rows = norm_gemm(terms, layer.attention_norm.eps, qkv.weight, bias=qkv.bias)
            rows, norm = layer.attend(rows, batch, backend), layer.mlp_norm
            terms = gemm_add(rows, out.weight, x, norm.weight, scratch, bias=out.bias)
            rows = norm_gemm(terms, norm.eps, gate_up.weight, bias=gate_up.bias, activation=layer.activation.value)
            terms = gemm_add(rows, down.weight, x, following.weight, scratch, bias=down.bias)


@cache
def fused_scratch(device: torch.device, width: int) -> FusedScratch:
    """One a device and width: products of one stream never overlap."""
    from thranite_kernels.fused_gemm import FusedScratch

    return FusedScratch.allocate(width, device)
