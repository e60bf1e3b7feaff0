"""The ranks' sums in the interpreter, ranks as processes over shared memory: bit for bit the reference's, on each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from thranite_kernels.all_reduce import one_shot_all_reduce, one_shot_largest, two_shot_all_reduce, two_shot_largest
from thranite_kernels.packet_sum import packet_all_reduce, packet_all_reduce_norm, packet_largest, packet_rows
from thranite_kernels.peer_memory import PROGRAMS, PeerMemory, piece_bytes

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("size", "seed"), [(2, 0), (3, 1)])
def test_ranks_sum_alike(size: int, seed: int, tmp_path: Path) -> None:
    """Kernels, sizes and types in random order over one memory."""
    shared = tmp_path / "memory"
    with shared.open("wb") as file:
        file.truncate(size * piece_bytes(size))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "TRITON_INTERPRET": "1",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.all_reduce_peer", str(rank), str(size), str(shared), str(seed)],
            env=environment,
            cwd=ROOT,
        )
        for rank in range(size)
    ]
    try:
        assert [rank.wait(240) for rank in ranks] == [0] * size
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


def memory(size: int = 2, programs: int = PROGRAMS) -> PeerMemory:
    return PeerMemory.of(0, [0] * size, 0, "cpu", programs)


def test_what_cannot_be_summed_is_refused() -> None:
    for kernel in (one_shot_all_reduce, two_shot_all_reduce, packet_all_reduce):
        for x in (
            torch.zeros(0),
            torch.zeros((64 << 20) // 4 + 1),
            torch.zeros(4, 4).t()[1:],
            torch.zeros(4, dtype=torch.int32),
        ):
            with pytest.raises(ValueError, match="all_reduce"):
                kernel(x, memory())
    with pytest.raises(ValueError, match="whole"):
        packet_all_reduce(torch.zeros(3, dtype=torch.float16), memory())
    x = torch.zeros(2, 4)
    for rows, residual, weight in ((x, x, x[0, :2]), (x, x.half(), x[0]), (x[:, :2], x[:, :2], x[0, :2])):
        with pytest.raises(ValueError, match="packet_all_reduce_norm"):
            packet_all_reduce_norm(rows, residual, weight, 1e-6, memory())
    for rank, programs in ((2, 1), (0, PROGRAMS + 1), (0, 0)):
        with pytest.raises(ValueError, match="peer memory"):
            PeerMemory.of(rank, [0, 0], 0, "cpu", programs)


def test_largest_sums_fit_their_regions() -> None:
    assert one_shot_largest(memory(), 2) * 2 == two_shot_largest(memory(), 2) * 2 == 64 << 20
    assert two_shot_largest(memory(3), 2) % (3 * 4096) == 0
    assert two_shot_largest(memory(3, 1), 2) <= (512 << 10) // 2
    assert packet_largest(memory()) == 2 << 20
    assert packet_rows(memory(), 4096, 2) == 256
    assert packet_rows(memory(), 8192, 2) == 128
    assert packet_rows(memory(), 3, 2) == 0
