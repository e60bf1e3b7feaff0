"""One rank of `thranite bench all-reduce`: `python -m thranite.bench.all_reduce_rank` and a `Job`'s fields."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

from thranite.config import Device
from thranite.errors import ThraniteError

if TYPE_CHECKING:
    import torch

    from thranite.parallel.process_group import GroupCommunicator
    from thranite_kernels.peer_memory import PeerMemory

SMALLEST = 8 << 10
SUMS = 20  # a graph, so that its launch is a small part
REPLAYS, ON_END = 7, 4
WIDTH, ROWS = 4096, (1, 8, 16, 32, 64, 128, 256, 512, 2048, 8192)  # of sums that are added and normalised
EPS = 1e-5

Sum = Callable[["torch.Tensor"], "torch.Tensor"]


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
    """One sum of so many bytes on each rank. `norm`: added to a residual stream and normalised as well."""

    way: str
    bytes: int
    microseconds: float
    norm: bool = False

    @property
    def gigabytes_a_second(self) -> float:
        return self.bytes / self.microseconds / 1e3

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "gigabytes_a_second": round(self.gigabytes_a_second, 2)}


def measure_rank(job: Job) -> list[Timing]:
    """All ranks do this at once; the times are rank 0's."""
    import torch

    from thranite.parallel.process_group import join
    from thranite.runner.device import pick_device

    choice: Device = "cuda" if job.device == "cuda" else "cpu" if job.device == "cpu" else "auto"
    device = pick_device(choice, job.rank, job.size)
    communicator = join(job.rank, job.size, job.store, device)
    dtype = getattr(torch, job.dtype)
    seconds = graph_seconds if device.type == "cuda" else host_seconds
    timings = []
    count = SMALLEST
    while count <= job.largest:
        x = torch.full((count // dtype.itemsize,), job.rank + 1.0, device=device).to(dtype)
        for way, reduce in ways(communicator, x):
            check(communicator, reduce, way, x)
            x.normal_()
            timings.append(Timing(way, count, seconds(communicator, reduce, x) * 1e6))
            x.fill_(job.rank + 1.0)
        count *= 2
    if communicator.peers is not None:
        timings += with_norm(communicator, dtype, device)
    communicator.close()
    return timings


def ways(communicator: GroupCommunicator, x: torch.Tensor) -> Iterator[tuple[str, Sum]]:
    """The library's sum, each kernel that can sum x, and what the engine takes. The same on every rank."""
    yield "nccl" if x.is_cuda else "gloo", communicator.library_all_reduce
    if communicator.peers is None:
        return
    from thranite.parallel.peer_sums import KERNELS, fits

    memory = communicator.peers.memory
    for way, kernel in KERNELS.items():
        if fits(way, x, memory):
            yield way, partial(_in_place, kernel, memory)
    yield "auto", communicator.all_reduce


def _in_place(kernel: Callable[..., torch.Tensor], memory: PeerMemory, x: torch.Tensor) -> torch.Tensor:
    return kernel(x, memory, out=x)


def with_norm(communicator: GroupCommunicator, dtype: torch.dtype, device: torch.device) -> list[Timing]:
    """The sum, the residual and the norm: one kernel after another, and in one."""
    import torch

    from thranite_kernels.all_reduce_norm import two_shot_all_reduce_norm, two_shot_norm_rows
    from thranite_kernels.packet_sum import packet_all_reduce_norm, packet_rows
    from thranite_kernels.rms_norm import rms_norm

    assert communicator.peers is not None
    memory = communicator.peers.memory
    weight = torch.ones(WIDTH, dtype=dtype, device=device)

    def apart(reduce: Sum, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(reduce(x), weight, EPS, residual=residual)

    def fused(kernel: Callable[..., torch.Tensor], residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return kernel(x, residual, weight, EPS, memory, out=x)

    timings = []
    for rows in ROWS:
        x, residual = (torch.randn(rows, WIDTH, device=device).to(dtype) for _ in range(2))
        contestants: dict[str, Sum] = {
            "nccl, norm": partial(apart, communicator.library_all_reduce, residual),
            "auto, norm": partial(apart, communicator.all_reduce, residual),
        }
        if rows <= packet_rows(memory, WIDTH, x.itemsize):
            contestants["packets"] = partial(fused, packet_all_reduce_norm, residual)
        if rows <= two_shot_norm_rows(memory, WIDTH, x.itemsize):
            contestants["two-shot"] = partial(fused, two_shot_all_reduce_norm, residual)
        for way, reduce in contestants.items():
            timings.append(Timing(way, x.nbytes, graph_seconds(communicator, reduce, x) * 1e6, norm=True))
    return timings


def check(communicator: GroupCommunicator, reduce: Sum, way: str, x: torch.Tensor) -> None:
    """Rank r brings r + 1 everywhere. Raises if the sum is not everywhere what it must be."""
    want = communicator.size * (communicator.size + 1) / 2
    total = reduce(x.clone())
    if not bool((total == want).all()):
        raise ThraniteError(f"{way}: {x.numel()} elements over {communicator.size} ranks: wrong on {communicator.rank}")


def graph_seconds(communicator: GroupCommunicator, reduce: Sum, x: torch.Tensor) -> float:
    """Median time of one sum of those in a graph, replayed several times on end.

    The ranks meet on their GPUs before, and the first replay is not timed: by then each rank's host is ahead of its
    GPU, and what is timed holds no host's delays. (Sums go on from each other's results, which may grow out of range.)
    """
    import torch

    y, token = x.clone(), torch.zeros(1, device=x.device)
    reduce(y)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        z = y
        for _ in range(SUMS):
            z = reduce(z)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def replays() -> float:
        y.copy_(x)
        communicator.library_all_reduce(token)
        graph.replay()
        begin.record()
        for _ in range(ON_END):
            graph.replay()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / ON_END

    return _median(replays)


def host_seconds(_: GroupCommunicator, reduce: Sum, x: torch.Tensor) -> float:
    """Median time of one sum, for collectives that make the host wait."""

    def sums() -> float:
        started = time.perf_counter()
        for _ in range(SUMS):
            reduce(x)
        return time.perf_counter() - started

    return _median(sums)


def _median(sums: Callable[[], float]) -> float:
    return median([sums() for _ in range(REPLAYS + 1)][1:]) / SUMS


if __name__ == "__main__":
    measure_rank(Job.parse(sys.argv[1:]))
