"""Tensors that share none of a GPU's memory with others: what they had is given back with them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

LARGE_BYTES, LARGE_STEP = 10 << 20, 2 << 20
"""For a tensor of LARGE_BYTES or more torch takes memory of its own from a GPU's driver, in steps of LARGE_STEP. If it
leaves more than 1 MiB of that, other tensors get the rest, and one that stays keeps all of it from being given back."""


def own_bytes(size: int, device: torch.device) -> int:
    """Of the storage of a tensor with `size` bytes: all that torch takes for it alone. A smaller one shares anyway."""
    large = device.type == "cuda" and size >= LARGE_BYTES
    return -(-size // LARGE_STEP) * LARGE_STEP if large else size


def own_empty(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """As `torch.empty`, in a storage of `own_bytes`."""
    return _own(torch.empty, shape, dtype, device)


def own_zeros(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """As `torch.zeros`, in a storage of `own_bytes`. A CPU's is not touched before it is used."""
    return _own(torch.zeros, shape, dtype, device)


def _own(make: Callable[..., Tensor], shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    size = math.prod(shape) * dtype.itemsize
    return make(own_bytes(size, device), dtype=torch.uint8, device=device)[:size].view(dtype).view(shape)
