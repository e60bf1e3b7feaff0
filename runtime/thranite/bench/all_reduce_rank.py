"""One rank of `thranite bench all-reduce`: `python -m thranite.bench.all_reduce_rank` and a `Job`'s fields."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from thranite.config import Device
from thranite.errors import ThraniteError

if TYPE_CHECKING:
    import torch

    from thranite.layers.communicator import Communicator

SMALLEST = 8 << 10
SUMS = 20  # a graph, so that its launch is a small part
REPLAYS = 7


@dataclass(frozen=True, slots=True)
class Job:
    """What a rank does. `largest`: bytes."""

    rank: int
    size: int
    store: str
    device: str
    dtype: str
    largest: int

    def argv(self) -> list[str]:
        return [str(value) for value in asdict(self).values()]

    @classmethod
    def parse(cls, argv: Sequence[str]) -> Job:
        rank, size, store, device, dtype, largest = argv
        return cls(int(rank), int(size), store, device, dtype, int(largest))


@dataclass(frozen=True, slots=True)
class Timing:
    """One sum of so many bytes on each rank."""

    way: str
    bytes: int
    microseconds: float

    @property
    def gigabytes_a_second(self) -> float:
        return self.bytes / self.microseconds / 1e3

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "gigabytes_a_second": round(self.gigabytes_a_second, 2)}


def measure_rank(job: Job) -> list[Timing]:
    """All ranks do this at once; the times are rank 0's."""
    import torch

    from thranite.parallel.place import RankPlace
    from thranite.runner.device import pick_device

    choice: Device = "cuda" if job.device == "cuda" else "cpu" if job.device == "cpu" else "auto"
    device = pick_device(choice, job.rank, job.size)
    communicator = RankPlace(job.rank, job.size, job.store).join(device)
    way, seconds = ("nccl", graph_seconds) if device.type == "cuda" else ("gloo", host_seconds)
    timings = []
    count = SMALLEST
    while count <= job.largest:
        x = torch.full((count // getattr(torch, job.dtype).itemsize,), job.rank + 1.0, device=device)
        x = x.to(getattr(torch, job.dtype))
        check(communicator, x)
        timings.append(Timing(way, count, seconds(communicator, x.zero_()) * 1e6))
        count *= 2
    communicator.close()
    return timings


def check(communicator: Communicator, x: torch.Tensor) -> None:
    """Rank r brings r + 1 everywhere. Raises if the sum is not everywhere what it must be."""
    want = communicator.size * (communicator.size + 1) / 2
    total = communicator.all_reduce(x.clone())
    if not bool((total == want).all()):
        raise ThraniteError(f"the sum over {communicator.size} ranks is wrong on rank {communicator.rank}")


def graph_seconds(communicator: Communicator, x: torch.Tensor) -> float:
    """Median time of one sum of those in a graph."""
    import torch

    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        y = x
        for _ in range(SUMS):
            y = communicator.all_reduce(y)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def replay() -> float:
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    return _median(replay)


def host_seconds(communicator: Communicator, x: torch.Tensor) -> float:
    """Median time of one sum, for collectives that make the host wait."""

    def sums() -> float:
        started = time.perf_counter()
        for _ in range(SUMS):
            communicator.all_reduce(x)
        return time.perf_counter() - started

    return _median(sums)


def _median(sums: Callable[[], float]) -> float:
    return median([sums() for _ in range(REPLAYS + 1)][1:]) / SUMS


if __name__ == "__main__":
    measure_rank(Job.parse(sys.argv[1:]))
