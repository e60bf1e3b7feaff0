"""Linears: one weight each, stacked by rows from the shards a checkpoint names (q, k and v; gate and up)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import torch
from torch import Tensor, nn

from thranite.layers.dense import dense


class Split(StrEnum):
    """Along which side of a weight tensor parallelism would cut a shard; a bias is cut only with the output."""

    OUTPUT = "output"
    INPUT = "input"


@dataclass(frozen=True, slots=True)
class Shard:
    """Rows `start` to `start + size` of a stacked weight, and of its bias."""

    name: str
    start: int
    size: int
    split: Split


class LinearMethod(Protocol):
    """How a linear keeps its weights and multiplies by them."""

    def create_weights(self, linear: Linear, dtype: torch.dtype, device: torch.device) -> None:
        """Register the linear's parameters, uninitialised."""

    def load_shard(self, linear: Linear, shard: Shard, parameter: str, source: Tensor) -> None:
        """Copy a checkpoint's tensor ("weight" or "bias" of `shard`) to its place, converting its type."""

    def apply(self, linear: Linear, x: Tensor) -> Tensor:
        """x [T, in_features] → [T, out_features]."""


class UnquantizedMethod:
    """Weights as the checkpoint has them."""

    def create_weights(self, linear: Linear, dtype: torch.dtype, device: torch.device) -> None:
        weight = torch.empty(linear.out_features, linear.in_features, dtype=dtype, device=device)
        linear.weight = nn.Parameter(weight, requires_grad=False)
        bias = torch.empty(linear.out_features, dtype=dtype, device=device) if linear.has_bias else None
        linear.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def load_shard(self, linear: Linear, shard: Shard, parameter: str, source: Tensor) -> None:
        target = linear.get_parameter(parameter)
        target.narrow(0, shard.start, shard.size).copy_(source)

    def apply(self, linear: Linear, x: Tensor) -> Tensor:
        return dense(x, linear.weight, linear.bias)


class Linear(nn.Module):
    """y = x Wᵀ + b. `shards`: (name, rows) in the order of the stacked rows."""

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        shards: Sequence[tuple[str, int]],
        *,
        bias: bool,
        split: Split,
        dtype: torch.dtype,
        device: torch.device,
        method: LinearMethod,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = sum(size for _, size in shards)
        self.has_bias = bias
        self.shards: dict[str, Shard] = {}
        start = 0
        for name, size in shards:
            self.shards[name] = Shard(name, start, size, split)
            start += size
        self.method = method
        method.create_weights(self, dtype, device)

    def load_shard(self, shard: str, parameter: str, source: Tensor) -> None:
        """Put a checkpoint's tensor ("weight" or "bias" of `shard`) in its place."""
        self.method.load_shard(self, self.shards[shard], parameter, source)

    def forward(self, x: Tensor) -> Tensor:
        return self.method.apply(self, x)
