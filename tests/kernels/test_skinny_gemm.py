"""skinny_gemm against float64: odd widths and depths, splits, bias; counters back at zero."""

from __future__ import annotations

import pytest
import torch

from thranite_kernels.skinny_gemm import GemmScratch, skinny_gemm, skinny_gemm_reference
from thranite_kernels.target import GemmConfig
from thranite_kernels.testing import assert_close


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize(
    ("rows", "width", "depth", "config"),
    [
        (1, 70, 300, GemmConfig(4, 128, 1, 4, 1, dot=False)),
        (1, 33, 640, GemmConfig(8, 128, 3, 4, 1, dot=False)),
        (3, 70, 300, GemmConfig(32, 64, 1, 4, 3)),
        (16, 48, 512, GemmConfig(16, 64, 3, 2, 3)),
        (8, 64, 256, None),
        (1, 64, 1024, None),
    ],
)
def test_matches_reference(
    device: str, low: bool, rows: int, width: int, depth: int, config: GemmConfig | None
) -> None:
    """Two products over one scratch give the same bits, near the reference."""
    dtype = (torch.bfloat16 if device == "cuda" else torch.float16) if low else torch.float32
    x = torch.randn(rows, depth, device=device).to(dtype)
    weight = (torch.randn(width, depth, device=device) / depth**0.5).to(dtype)
    bias = torch.randn(width, device=device).to(dtype) if rows != 3 else None
    scratch = GemmScratch.allocate(width, device)
    outs = [
        skinny_gemm(x, weight, scratch, bias=bias, out=torch.full((rows, width), torch.nan, dtype=dtype, device=device),
                    config=config)
        for _ in range(2)
    ]  # fmt: skip
    assert_close(outs[0], skinny_gemm_reference(x, weight, bias))
    assert torch.equal(outs[0], outs[1])
    assert not bool(scratch.count.any())
