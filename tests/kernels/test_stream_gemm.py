"""stream_gemm against float64: odd sizes, shares that cross blocks, bias; counters back at zero. What it refuses."""

from __future__ import annotations

import pytest
import torch

from thranite_kernels.skinny_gemm import skinny_gemm_reference
from thranite_kernels.stream_gemm import MAX_ROWS, StreamScratch, stream_gemm, streams
from thranite_kernels.target import STREAM, StreamConfig, Target, pretended
from thranite_kernels.testing import assert_close


@pytest.mark.parametrize(
    ("rows", "width", "depth", "config"),
    [
        (1, 300, 256, StreamConfig(64, 64, 3, ahead=99)),  # fewer steps than are asked for ahead
        (5, 257, 328, StreamConfig(64, 64, 3, ahead=2)),  # neither side a multiple of a tile
        (16, 64, 2048, StreamConfig(64, 64, 3, ahead=1)),  # one block shared by every program
        (3, 40, 64, StreamConfig(64, 64, 3)),  # one step in all
        (2, 128, 512, StreamConfig(32, 64, 3, programs=4)),  # whole blocks, none shared
        (16, 520, 1032, STREAM),
        (9, 40, 64, StreamConfig(64, 64, 3)),  # one step in all
        (13, 264, 520, StreamConfig(64, 64, 3, programs=20)),  # shares shorter than a block
        (16, 64, 2048, StreamConfig(128, 128, 3, num_warps=8)),  # one block, wider than the weight has rows
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


def test_engines_use_it_for_all_rows_that_it_takes() -> None:
    """Where kernels begin early."""
    weight = torch.empty(64, 64, dtype=torch.bfloat16, device="meta")
    x = torch.empty(MAX_ROWS + 1, 64, dtype=torch.bfloat16, device="meta")
    with pretended(Target(90, 132)):
        assert streams(x[:MAX_ROWS], weight)
        assert not streams(x, weight)
    with pretended(Target(80, 108)):
        assert not streams(x[:1], weight)
