"""The sums over peer memory on two real GPUs, each rank a process (make gpu2-test)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from thranite.parallel.ranks import rendezvous

ROOT = Path(__file__).parents[3]
SIZE = 2
SECONDS = 150


@pytest.mark.gpu2
def test_sums_over_two_gpus(tmp_path: Path) -> None:
    """Every kernel and type, odd sizes, eager and in graphs in any order, against the reference bit by bit; NCCL's sums
    agree between ranks; a stop frees kernels that wait."""
    store = rendezvous()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONFAULTHANDLER": "1",
    }
    logs = [tmp_path / f"rank-{number}.log" for number in range(SIZE)]
    ranks = []
    for number, log in enumerate(logs):
        command = [sys.executable, "-m", "tests.support.gpu_sums", str(number), str(SIZE), str(store)]
        with log.open("w") as output:
            ranks.append(subprocess.Popen(command, env=environment, cwd=ROOT, stdout=output, stderr=output))
    deadline = time.monotonic() + SECONDS
    try:
        while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        time.sleep(1.0)  # for the other, which fails too, to say why
        for rank in ranks:
            rank.send_signal(signal.SIGABRT)  # or where it hangs
        time.sleep(0.5)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
        shutil.rmtree(store.parent, ignore_errors=True)
    said = "\n".join(log.read_text()[-3000:] for log in logs)
    print(said)
    assert [rank.returncode for rank in ranks] == [0] * SIZE, said
    assert said.count(": right") == SIZE
