"""Linears: one weight each, stacked by rows from the shards a checkpoint names (q, k and v; gate and up).

Over tensor-parallel ranks a linear is cut by its outputs (each rank computes the results of its own rows) or by its
inputs (each rank computes a part of every result; who takes the parts sums them, see `Communicator`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from thranite.layers.communicator import ALONE, Communicator
from thranite.layers.dense import SKINNY_GPU_ROWS, add_dense, dense, dense_parts, gated_dense
from thranite.layers.gated_products import gated_product
from thranite.layers.module import Module
from thranite.layers.own_memory import own_empty
from thranite.models.partition import Cut

# From so many rows on a product adds to the residual stream itself, and the norm that follows moves two tensors, not
# four. With fewer, products are often other kernels', which do not add, and there is little to gain.
ADDING_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Shard:
    """Rows from `start` on of a stacked weight, and of its bias, hold the rows `rows` of a checkpoint's tensor."""

    name: str
    start: int
    rows: Cut


class LinearMethod(Protocol):
    """How a linear keeps its weights and multiplies by them."""

    def create_weights(self, linear: Linear, dtype: torch.dtype, device: torch.device) -> None:
        """Register the linear's parameters, uninitialised but for zeros in rows that no shard fills."""

    def load_shard(self, linear: Linear, shard: Shard, parameter: str, source: Tensor) -> None:
        """Copy this rank's part of a checkpoint's tensor ("weight" or "bias" of `shard`) to its place, converting its
        type."""

    def apply(self, linear: Linear, x: Tensor) -> Tensor:
        """x [T, in_features] → [T, out_features]."""

    def add(self, linear: Linear, x: Tensor, stream: Tensor) -> bool:
        """Add the result, without a bias, to `stream` [T, out_features] within the product. False, and nothing done,
        where the method cannot."""

    def parts(self, linear: Linear, x: Tensor) -> Tensor | None:
        """The result, without a bias, as fp32 [parts, T, out_features] for a norm to add; None: `apply` is as quick."""

    def gated(self, linear: Linear, x: Tensor) -> Tensor | None:
        """SiLU of the result's first half times its second, [T, out_features / 2]; None: not in one kernel."""


class UnquantizedMethod:
    """Weights as the checkpoint has them."""

    def create_weights(self, linear: Linear, dtype: torch.dtype, device: torch.device) -> None:
        weight = own_empty(linear.out_features, linear.in_features, dtype=dtype, device=device)
        bias = torch.empty(linear.out_features, dtype=dtype, device=device) if linear.has_bias else None
        for parameter in (weight, bias):
            if parameter is not None:
                parameter[linear.filled_rows :].zero_()
        linear.weight = nn.Parameter(weight, requires_grad=False)
        linear.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def load_shard(self, linear: Linear, shard: Shard, parameter: str, source: Tensor) -> None:
        target = linear.get_parameter(parameter)
        target.narrow(0, shard.start, shard.rows.size).copy_(source)

    def apply(self, linear: Linear, x: Tensor) -> Tensor:
        return dense(x, linear.weight, linear.bias)

    def add(self, linear: Linear, x: Tensor, stream: Tensor) -> bool:
        add_dense(x, linear.weight, stream)
        return True

    def parts(self, linear: Linear, x: Tensor) -> Tensor | None:
        few = linear.follows_attention and len(x) <= SKINNY_GPU_ROWS  # see `dense.few_rows`
        return None if few else dense_parts(x, linear.weight)

    def gated(self, linear: Linear, x: Tensor) -> Tensor | None:
        few = gated_dense(x, linear.weight)
        return gated_product(x, linear.weight) if few is None else few


class Linear(Module):
    """y = x Wᵀ + b. `shards`: (name, rows) in the order of the stacked rows.

    `inputs`: the columns of the checkpoint's weight that this rank holds; if not all of them, y is a part, to be summed
    over the ranks, and rank 0's alone has the bias. `padded_rows`: rows of the weight, if more than the shards fill.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        inputs: Cut,
        shards: Sequence[tuple[str, Cut]],
        *,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
        method: LinearMethod,
        communicator: Communicator = ALONE,
        padded_rows: int = 0,
    ) -> None:
        super().__init__()
        self.inputs, self.communicator = inputs, communicator
        self.in_features = inputs.size
        self.filled_rows = sum(rows.size for _, rows in shards)
        self.out_features = max(self.filled_rows, padded_rows)
        self.partial = inputs.size < inputs.total
        self.has_bias = bias
        self.follows_attention = False  # whether it multiplies what attention has just written
        self.shards: dict[str, Shard] = {}
        start = 0
        for name, rows in shards:
            self.shards[name] = Shard(name, start, rows)
            start += rows.size
        self.method = method
        method.create_weights(self, dtype, device)

    def load_shard(self, shard: str, parameter: str, source: Tensor) -> None:
        """Put this rank's part of a checkpoint's tensor ("weight" or "bias" of `shard`) in its place."""
        if parameter == "bias" and self.partial and self.communicator.rank > 0:
            source = torch.zeros_like(source)
        self.method.load_shard(self, self.shards[shard], parameter, source)

    def forward(self, x: Tensor) -> Tensor:
        return self.method.apply(self, x)

    def add_to(self, stream: Tensor, x: Tensor) -> Tensor | None:
        """What is left to add to `stream` [T, out_features] of y, as `RMSNorm.after_adding` takes it; None if the
        product has added all of it, as it does for many rows."""
        whole = not self.partial and not self.has_bias
        if whole and len(x) >= ADDING_ROWS and self.method.add(self, x, stream):
            return None
        parts = self.method.parts(self, x) if whole else None
        return self.method.apply(self, x) if parts is None else parts

    def gated(self, x: Tensor) -> Tensor | None:
        """SiLU of y's first half times its second; None: not in one kernel."""
        return None if self.has_bias else self.method.gated(self, x)
