"""gated_gemm against float64 on a GPU: odd numbers of rows, few tiles and many; what it takes.

Its kernel is Gluon's, which no interpreter runs; what it does before it waits is in `test_early_starts.py`.
"""

from __future__ import annotations

import pytest
import torch

from tests.support.hopper import H200, on_hopper
from thranite_kernels.gated_gemm import (
    SHORT,
    TALL,
    TALL_ROWS,
    Tiles,
    evenness,
    gated_gemm,
    gated_gemm_launch,
    gated_gemm_reference,
    gated_gemm_work,
    takes,
)
from thranite_kernels.target import Target, pretended
from thranite_kernels.testing import assert_close

GUARD = 777.0


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize(
    ("rows", "width", "depth"),
    [
        (65, 14336, 4096),
        (1000, 14336, 4096),  # seven rounds of tiles, the last one short
        (2177, 1024, 4096),  # a second group of rows, of two tiles
        (1, 128, 256),  # one tile, whose steps are the ring's
        (127, 384, 320),
        (128, 256, 512),
        (129, 7168, 4096),
        (5000, 640, 1088),
    ],
)
@pytest.mark.parametrize("tiles", [SHORT, TALL])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_matches_reference(rows: int, width: int, depth: int, dtype: torch.dtype, tiles: Tiles) -> None:
    """Every element is written, none beyond; the same bits each time, also from rows that lie apart."""
    x = torch.randn(rows, depth + 64, device="cuda").to(dtype)[:, :depth]
    weight = (torch.randn(2 * width, depth, device="cuda") / depth**0.5).to(dtype)
    memory = torch.full((rows * width + 4096,), GUARD, dtype=dtype, device="cuda")
    out = memory[: rows * width].view(rows, width).fill_(torch.nan)
    gated_gemm_launch(x, weight, out=out, tiles=tiles).run()
    # Gate and up are rounded to 8 bits before they are multiplied: one that lies between two may fall to either.
    assert_close(out, gated_gemm_reference(x, weight), peak=0.2)
    assert bool((memory[rows * width :] == GUARD).all())
    for _ in range(3):
        assert torch.equal(gated_gemm(x.contiguous(), weight), out)
    again = torch.full_like(out, torch.nan)
    gated_gemm_launch(x.contiguous(), weight, out=again, tiles=tiles).run()
    assert torch.equal(again, out)


def test_only_what_tensor_maps_can_read_on_hopper() -> None:
    """16-bit rows at multiples of 16 bytes, whole tiles of the weight; other devices have no such products."""
    weight = torch.empty(28672, 4096, dtype=torch.bfloat16, device="meta")
    x = torch.empty(300, 4104, dtype=torch.bfloat16, device="meta")
    with pretended(H200):
        assert takes(x[:, :4096], weight)
        assert not takes(x[:, 4:4100], weight)
        assert not takes(x[:, :4096].float(), weight.float())
        assert not takes(x[:, :4096].half(), weight)
        assert not takes(x[:, :4096], weight[:28544])  # 111.5 tiles of each half
        assert not takes(x[:, :4064], weight[:, :4064])
        assert not takes(x[:, :192], weight[:, :192])
    for target in (Target(80, 108), Target(100, 148)):
        with pretended(target):
            assert not takes(x[:, :4096], weight)


def test_refuses_what_it_would_read_wrongly() -> None:
    """By name."""
    x = torch.empty(300, 4096, dtype=torch.bfloat16, device="meta")
    weight = torch.empty(28672, 4096, dtype=torch.bfloat16, device="meta")
    with pretended(H200):
        with pytest.raises(ValueError, match="inner size"):
            gated_gemm(x[:, :2048], weight)
        with pytest.raises(ValueError, match="steps of 64"):
            gated_gemm(x[:, :4064], weight[:, :4064])
        with pytest.raises(ValueError, match="steps of 128"):
            gated_gemm(x, weight[:28544])
        with pytest.raises(ValueError, match="result"):
            gated_gemm_launch(x, weight, out=x)


def test_how_even_rounds_of_tiles_are() -> None:
    """llama-8b's, over one GPU and over two."""
    assert evenness(8192, 14336, 132) == pytest.approx(8192 / 192 * 112 / (37 * 132))
    assert evenness(8448, 14336, 132) == pytest.approx(44 * 112 / (38 * 132))
    assert evenness(TALL_ROWS - 64, 14336, 132) == pytest.approx((TALL_ROWS - 64) / 128 * 112 / (28 * 132))
    assert evenness(1025, 14336, 132) == pytest.approx(1025 / 128 * 112 / (8 * 132))
    assert evenness(1500, 7168, 132) < 0.9 < evenness(8192, 7168, 132)


def test_work() -> None:
    """Bytes and FLOPs of llama-8b's at 1,024 rows."""
    work = gated_gemm_work(1024, 14336, 4096)
    assert work.bytes == 2 * ((1024 + 28672) * 4096 + 1024 * 14336)
    assert work.flops == 2 * 1024 * 28672 * 4096
