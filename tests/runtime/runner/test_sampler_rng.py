"""The counter generator: fixed values shared with the kernels, uniformity, independence of neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.support.sampling import bits, chi_square_excess, gumbel
from thranite.runner.counter_rng import DRAW_CHUNK, FIRST_CHUNK, exponential_logs, mix64, random_bits, row_keys
from thranite_kernels import rng as kernel_rng

# (seed, sample index, position): key, then the bits of token ids 0, 1 and 151,935
VECTORS = {
    (0, 0, 0): (0xA706DD2F4D197E6F, 0x1FE385E6, 0x59922C3E, 0xA42650EF),
    (1, 1, 1): (0x9F55F71AE74E3997, 0xB939672F, 0x7F90644A, 0x2F47031B),
    (-5, 2, 4097): (0x33DAA134E8237B8E, 0x0B98F395, 0x6A15AE7F, 0xD3294693),
    (2**64 - 1, 3, 130_000): (0x4BB173AF613F83D7, 0xF147275A, 0x1EE0174E, 0xB85BD7D7),
    (2**63, 1023, 7): (0xE5DC1FA279683976, 0x9251B875, 0x89EFC8BA, 0xCC2CC9C9),
}


def keys_of(seeds: list[int], indices: list[int], positions: list[int]) -> torch.Tensor:
    mixed = mix64(np.array([seed % 2**64 for seed in seeds], np.uint64))
    keys = row_keys(mixed, np.array(indices, np.uint64), np.array(positions, np.uint64))
    return torch.from_numpy(keys.view(np.int64))


def ids(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.int32)


def uniforms(rows: Sequence[list[int]], width: int) -> NDArray[np.float64]:
    """[R, width] in [0, 1); `rows`: seeds, sample indices, positions."""
    return random_bits(keys_of(*rows), ids(width)).numpy().view(np.uint32) / 2.0**32


def test_fixed_vectors() -> None:
    seeds, indices, positions = (list(column) for column in zip(*VECTORS, strict=True))
    keys = keys_of(seeds, indices, positions)
    drawn = random_bits(keys, ids(151_936))[:, [0, 1, 151_935]].numpy().view(np.uint32)
    found = [(int(key) % 2**64, *row) for key, row in zip(keys.tolist(), drawn.tolist(), strict=True)]
    assert found == list(VECTORS.values())
    assert [bits(*row, 151_935) for row in VECTORS] == [vector[3] for vector in VECTORS.values()]


def test_equal_to_the_kernels_definition() -> None:
    seeds, indices, positions = (list(column) for column in zip(*VECTORS, strict=True))
    first = torch.tensor([FIRST_CHUNK], dtype=torch.int32)
    ours = random_bits(keys_of(seeds, indices, positions), torch.cat([ids(5000), first + ids(40)])).long() & 0xFFFFFFFF
    counters = torch.cat([torch.arange(5000), kernel_rng.FIRST_CHUNK + torch.arange(40)])
    assert ours.equal(kernel_rng.random_bits_reference(seeds, indices, positions, counters))
    assert DRAW_CHUNK == kernel_rng.DRAW_CHUNK


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-3), (torch.float64, 1e-12)])
def test_noise_is_finite_and_near_its_definition(dtype: torch.dtype, bound: float) -> None:
    noise = -exponential_logs(keys_of([3, 4], [0, 1], [9, 10]), ids(20_000), dtype)
    assert noise.dtype == dtype
    assert noise.isfinite().all()
    expected = [[gumbel(3, 0, 9, token) for token in range(20_000)], [gumbel(4, 1, 10, t) for t in range(20_000)]]
    assert (noise.double() - torch.tensor(expected, dtype=torch.float64)).abs().max() < bound


def test_extreme_bits_give_finite_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    extremes = torch.tensor([[0, 1, 2**31 - 1, -(2**31), -2, -1]], dtype=torch.int32)
    monkeypatch.setattr("thranite.runner.counter_rng.random_bits", lambda keys, counters: extremes)
    noise = -exponential_logs(torch.zeros(1, dtype=torch.int64), ids(6), torch.float32)[0]
    assert noise.isfinite().all()
    assert (noise.diff() <= 0).all()
    assert noise[0] > 22.8


@pytest.mark.parametrize("dimension", ["token", "position", "seed", "sample"])
def test_numbers_are_uniform_along_every_coordinate(dimension: str) -> None:
    count = 50_000
    run, fixed = list(range(count)), [5] * count
    if dimension == "token":
        values = uniforms(([5], [0], [5]), count)[0]
    else:
        columns = [run if dimension == name else fixed for name in ("seed", "sample", "position")]
        values = uniforms(columns, 3)[:, 2]
    counts = np.bincount((values * 256).astype(int), minlength=256).astype(np.float64)
    assert abs(chi_square_excess(counts, np.full(256, 1 / 256))) < 4.0


@pytest.mark.parametrize("shift", ["token", "position", "seed", "sample", "seed and position"])
def test_neighbours_are_independent(shift: str) -> None:
    """A grid of the pairs (number, its neighbour's number) is evenly filled."""
    count, width, cells = 300, 300, 24
    base = [list(range(100, 100 + count)), [2] * count, list(range(50, 50 + count))]
    moved = [
        [value + (name in shift) for value in column]
        for name, column in zip(("seed", "sample", "position"), base, strict=True)
    ]
    first = uniforms(base, width + 1)
    second = first[:, 1:] if shift == "token" else uniforms(moved, width)
    pairs = (first[:, :width] * cells).astype(int) * cells + (second * cells).astype(int)
    counts = np.bincount(pairs.ravel(), minlength=cells**2).astype(np.float64)
    assert abs(chi_square_excess(counts, np.full(cells**2, cells**-2.0))) < 4.0
