"""The one-shot sum in the interpreter, ranks as processes over shared memory: bit for bit the reference's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.all_reduce_peer import rank_bytes
from thranite_kernels.all_reduce import PROGRAMS, PeerMemory, largest, one_shot_all_reduce

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_sum_alike(size: int, tmp_path: Path) -> None:
    shared = tmp_path / "memory"
    with shared.open("wb") as file:
        file.truncate(size * rank_bytes(size))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "TRITON_INTERPRET": "1",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.all_reduce_peer", str(rank), str(size), str(shared)],
            env=environment,
            cwd=ROOT,
        )
        for rank in range(size)
    ]
    try:
        assert [rank.wait(120) for rank in ranks] == [0] * size
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


def test_what_cannot_be_summed_is_refused() -> None:
    addresses, epochs = torch.zeros(2, dtype=torch.int64), torch.zeros(PROGRAMS, dtype=torch.int32)
    memory = PeerMemory(0, 2, addresses, addresses, epochs)
    for x in (torch.zeros(0), torch.zeros(largest() + 1), torch.zeros(4, 4).t()[1:], torch.zeros(4, dtype=torch.int32)):
        with pytest.raises(ValueError, match="one_shot_all_reduce"):
            one_shot_all_reduce(x, memory)
    with pytest.raises(ValueError, match="address"):
        PeerMemory(0, 3, addresses, addresses, epochs)
