"""hopper_gemm against float64 on a GPU: odd sizes, all three results; how products are cut, which are cuBLAS's.

Its kernel is Gluon's, which no interpreter runs; what it does before it waits is in `test_early_starts.py`.
"""

from __future__ import annotations

import pytest
import torch

from tests.support.hopper import H200, on_hopper
from thranite_kernels.hopper_gemm import (
    HopperTiles,
    hopper_gemm,
    hopper_gemm_launch,
    hopper_gemm_reference,
    hopper_gemm_work,
    hopper_tiles,
    programs,
    tiles_for,
)
from thranite_kernels.target import Target, pretended
from thranite_kernels.testing import assert_close

GUARD = 777.0


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize(
    ("rows", "width", "depth", "tiles"),
    [
        (1, 6144, 4096, HopperTiles(48)),
        (16, 4096, 4096, HopperTiles(64, parts=2)),
        (17, 4096, 14336, HopperTiles(64, parts=2)),
        (33, 14336, 4096, HopperTiles(112, gated=True)),
        (64, 14336, 4096, HopperTiles(112, gated=True)),
        (64, 4096, 14336, HopperTiles(64, parts=2)),
        (5, 264, 128, HopperTiles(48)),  # one step; the last program's rows end beyond the weight's
        (31, 1000, 1152, HopperTiles(128)),  # nine steps
        (2, 40, 384, HopperTiles(16)),  # wider boxes than what is left
        (64, 520, 640, HopperTiles(96, parts=2)),  # parts of two and of three steps
        (7, 72, 256, HopperTiles(128, gated=True)),  # a half has fewer rows than a program
        (48, 200, 896, HopperTiles(80, gated=True)),
        (16, 24, 256, HopperTiles(32, parts=2)),  # a step each
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_matches_reference(rows: int, width: int, depth: int, tiles: HopperTiles, dtype: torch.dtype) -> None:
    """Every element is written, none beyond; the same bits each time, also from rows that lie apart."""
    wide = torch.randn(rows, depth + 64, device="cuda").to(dtype)
    x = wide[:, :depth]
    weight = (torch.randn(width * (2 if tiles.gated else 1), depth, device="cuda") / depth**0.5).to(dtype)
    size = tiles.parts * rows * width
    memory = torch.full((size + 4096,), GUARD, dtype=torch.float32 if tiles.parts > 1 else dtype, device="cuda")
    out = memory[:size].view((tiles.parts, rows, width) if tiles.parts > 1 else (rows, width)).fill_(torch.nan)
    hopper_gemm_launch(x, weight, tiles, out=out).run()
    actual = out.sum(0, keepdim=True) if tiles.parts > 1 else out
    # Gate and up are rounded to 8 bits before they are multiplied: one that lies between two may fall to either.
    assert_close(actual, hopper_gemm_reference(x, weight, tiles), peak=0.2 if tiles.gated else None)
    assert bool((memory[size:] == GUARD).all())
    assert torch.equal(hopper_gemm(x.contiguous(), weight, tiles), out)


@pytest.mark.parametrize(
    ("rows", "width", "depth", "parts", "gated", "expected"),
    [
        (64, 6144, 4096, False, False, HopperTiles(48)),
        (64, 4096, 14336, True, False, HopperTiles(64, parts=2)),
        (64, 14336, 4096, False, True, HopperTiles(112, gated=True)),
        (16, 4096, 4096, False, False, HopperTiles(32)),  # who cannot add parts
        (64, 4096, 4096, False, False, None),  # x would be read twice as often as the weight
        (16, 128256, 4096, False, False, None),  # more than a wave
        (16, 1024, 4096, False, False, None),  # too few programs
        (65, 6144, 4096, False, False, None),
        (16, 6144, 4160, False, False, None),  # no whole step of columns
        (8, 14336, 4096, True, False, HopperTiles(112)),  # nothing to gain from parts
    ],
)
def test_how_products_are_cut(
    rows: int, width: int, depth: int, parts: bool, gated: bool, expected: HopperTiles | None
) -> None:
    """llama-8b's and others, on 132 multiprocessors."""
    assert hopper_tiles(rows, width, depth, H200, parts=parts, gated=gated) == expected


@pytest.mark.parametrize("num_sms", [78, 114, 132])
def test_all_programs_run_at_once(num_sms: int) -> None:
    """Whatever the width: their rows cover it, and their stages fit beside each other."""
    for width in range(8, 40000, 488):
        for parts in (False, True):
            for gated in (False, True):
                tiles = hopper_tiles(33, width, 4096, Target(90, num_sms), parts=parts, gated=gated)
                if tiles is not None:
                    assert programs(tiles, width) <= num_sms
                    assert programs(tiles, width) // tiles.parts * tiles.rows >= width
                    assert tiles.stages(64) >= 4 // tiles.panels


def test_only_what_tensor_maps_can_read_on_hopper() -> None:
    """16-bit rows at multiples of 16 bytes; other devices have no such products."""
    weight = torch.empty(6144, 4096, dtype=torch.bfloat16, device="meta")
    x = torch.empty(8, 4104, dtype=torch.bfloat16, device="meta")
    with pretended(H200):
        assert tiles_for(x[:, :4096], weight) is not None
        assert tiles_for(x[:, 4:4100], weight) is None
        assert tiles_for(x[:, :4096].float(), weight.float()) is None
        assert tiles_for(x[:, :4096].half(), weight) is None
    for target in (Target(80, 108), Target(100, 148)):
        with pretended(target):
            assert tiles_for(x[:, :4096], weight) is None


def test_refuses_what_it_would_read_wrongly() -> None:
    """By name."""
    x = torch.empty(65, 4096, dtype=torch.bfloat16, device="meta")
    weight = torch.empty(6144, 4096, dtype=torch.bfloat16, device="meta")
    with pretended(H200):
        with pytest.raises(ValueError, match="1 to 64 rows"):
            hopper_gemm(x, weight, HopperTiles(48))
        with pytest.raises(ValueError, match="inner size"):
            hopper_gemm(x[:8, :2048], weight, HopperTiles(48))
        with pytest.raises(ValueError, match="steps of 16"):
            hopper_gemm(x[:8], weight, HopperTiles(40))
        with pytest.raises(ValueError, match="not of parts"):
            hopper_gemm(x[:8], weight, HopperTiles(48, parts=2, gated=True))
        with pytest.raises(ValueError, match="more parts"):
            hopper_gemm(x[:8, :128], weight[:, :128], HopperTiles(48, parts=2))


def test_work_is_the_weight_and_little_else() -> None:
    """Bytes of llama-8b's gate and up at 64 rows, with x and the activations."""
    work = hopper_gemm_work(64, 28672, 4096, HopperTiles(112, gated=True))
    assert work.bytes == 2 * (28672 + 64) * 4096 + 2 * 64 * 14336
    assert work.flops == 2 * 64 * 28672 * 4096
