"""The sums over peer memory on two real GPUs, each rank a process (make gpu2-test)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from thranite.parallel.ranks import rendezvous

ROOT = Path(__file__).parents[3]
SIZE = 2
SECONDS = 150


@pytest.mark.gpu2
def test_sums_over_two_gpus() -> None:
    """Every kernel and type, odd sizes, eager and in graphs in any order, against the reference bit by bit; NCCL's sums
    agree between ranks; a stop frees kernels that wait."""
    store = rendezvous()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.gpu_sums", str(rank), str(SIZE), str(store)],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(SIZE)
    ]
    outputs = []
    try:
        for rank in ranks:
            try:
                outputs.append(rank.communicate(timeout=SECONDS)[0])
            except subprocess.TimeoutExpired:
                rank.kill()
                outputs.append(f"{rank.communicate()[0]}\nno end after {SECONDS} s")
            if rank.returncode:
                break
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
        shutil.rmtree(store.parent, ignore_errors=True)
    print("\n".join(outputs))
    assert all(f"rank {rank}: right" in output for rank, output in enumerate(outputs)), "\n".join(outputs)[-6000:]
    assert len(outputs) == SIZE
