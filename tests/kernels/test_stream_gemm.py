"""stream_gemm against float64: odd widths and depths, shares that cross blocks, bias; counters back at zero."""

from __future__ import annotations

import pytest
import torch

from thranite_kernels.skinny_gemm import skinny_gemm_reference
from thranite_kernels.stream_gemm import StreamScratch, stream_gemm
from thranite_kernels.target import StreamConfig, stream_config
from thranite_kernels.testing import assert_close


@pytest.mark.parametrize(
    ("rows", "width", "depth", "config"),
    [
        (1, 300, 256, StreamConfig(64, 64, 3, ahead=99)),  # fewer steps than are asked for ahead
        (5, 257, 328, StreamConfig(64, 64, 3, ahead=2)),  # neither side a multiple of a tile
        (16, 64, 2048, StreamConfig(64, 64, 3, ahead=1)),  # one block shared by every program
        (3, 40, 64, StreamConfig(64, 64, 3)),  # one step in all
        (2, 128, 512, StreamConfig(32, 64, 3, programs=4)),  # whole blocks, none shared
        (16, 520, 1032, stream_config()),
    ],
)
@pytest.mark.parametrize("low", [False, True])
def test_matches_reference(device: str, low: bool, rows: int, width: int, depth: int, config: StreamConfig) -> None:
    """Two products over one scratch that held NaN give the same bits, near the reference."""
    if device == "cuda" and not low:
        pytest.skip("tiles of fp32 do not fit the tables' stages; the engine gives it 16-bit types alone")
    dtype = (torch.bfloat16 if device == "cuda" else torch.float16) if low else torch.float32
    x = torch.randn(rows, depth, device=device).to(dtype)
    weight = (torch.randn(width, depth, device=device) / depth**0.5).to(dtype)
    bias = torch.randn(width, device=device).to(dtype) if rows != 3 else None
    scratch = StreamScratch.allocate(width, device, config=config)
    scratch.partial.fill_(torch.nan)
    outs = [
        stream_gemm(x, weight, scratch, bias=bias, out=torch.full((rows, width), torch.nan, dtype=dtype, device=device),
                    config=config)
        for _ in range(2)
    ]  # fmt: skip
    assert_close(outs[0], skinny_gemm_reference(x, weight, bias))
    assert torch.equal(outs[0], outs[1])
    assert not bool(scratch.count.any())


def test_refuses_more_rows_than_it_takes(device: str) -> None:
    """17 rows are cuBLAS's."""
    weight = torch.zeros(64, 64, device=device)
    with pytest.raises(ValueError, match="1 to 16 rows"):
        stream_gemm(torch.zeros(17, 64, device=device), weight, StreamScratch.allocate(64, device))
