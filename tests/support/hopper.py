"""What tests of kernels for Hopper alone share."""

from __future__ import annotations

import pytest
import torch

from thranite_kernels.target import Target

H200 = Target(90, 132)


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """A tensor without memory."""
    return torch.empty(shape, dtype=dtype, device="meta")


on_hopper = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="Hopper's products"
)
