"""`python -m tests.support.gpu_sums RANK SIZE STORE`: one rank of sums over real GPUs, eager and in graphs."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Sequence

import torch

from thranite.parallel.peer_sums import KERNELS, fits
from thranite.parallel.process_group import GroupCommunicator, join
from thranite_kernels.all_reduce import all_reduce_norm_reference, all_reduce_reference
from thranite_kernels.all_reduce_norm import own_rows, two_shot_all_reduce_norm, two_shot_norm_rows
from thranite_kernels.packet_sum import packet_all_reduce_norm, packet_rows
from thranite_kernels.peer_memory import PeerMemory
from thranite_kernels.testing import assert_close

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LENGTHS = (1, 7, 2048, 2049, 4096, 5000, 3, 70_001, 262_144, 300_000, 2_000_003, 4_000_000)
SHAPES = ((1, 4096), (5, 30), (7, 2), (64, 4096), (3, 1000), (130, 4096), (200, 64), (256, 4096), (40, 8192))
LARGE_SHAPES = (*SHAPES, (1000, 4096), (4097, 4096), (2049, 1000), (700, 8192))
LARGEST_SHAPES = (*LARGE_SHAPES, (9001, 4096))  # in parts
EAGER, GRAPHS, REPLAYS = 150, 12, 150
STOP_SECONDS = 1.0
EPS = 1e-5

Case = Callable[[], object]  # refills its inputs, which every rank can compute, or checks what became of them
Parts = list[torch.Tensor]  # what each rank brings to one sum


class Sums:
    """Random sums, the same on every rank; what each rank brings is a function of the case's number and the rank."""

    def __init__(self, communicator: GroupCommunicator, memory: PeerMemory, device: torch.device) -> None:
        self.communicator, self.memory, self.device = communicator, memory, device
        self.rng = random.Random(5)
        self.calls = 0
        self.failures: list[str] = []  # the calls stay in step, so what follows can still be judged

    def draw(self, rank: int, number: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        generator = torch.Generator(self.device).manual_seed(1000 * number + rank)
        return torch.randn(shape, generator=generator, device=self.device).to(dtype)

    def expect(self, check: Case, what: str) -> None:
        try:
            check()
        except AssertionError as error:
            self.failures.append(f"{what}, call {self.calls}: {error}")

    def case(self) -> tuple[Case, Case, Case]:
        """(fill, run, check)."""
        return self.rng.choice((self.norm_case, self.own_norm_case, self.rows_case, self.sum_case, self.sum_case))()

    def attempt(self, run: Case, what: str) -> bool:
        """What the host refuses, it refuses on every rank: the others' calls still fit this one's."""
        try:
            run()
        except ValueError as error:
            self.failures.append(f"{what}, call {self.calls}: {error}")
            return False
        return True

    def sum_case(self) -> tuple[Case, Case, Case]:
        rng, memory = self.rng, self.memory
        dtype, length = rng.choice(DTYPES), rng.choice(LENGTHS)
        x = torch.empty(length, dtype=dtype, device=self.device)
        way = rng.choice([way for way in KERNELS if fits(way, x, memory)])
        out = x if rng.random() < 0.5 else torch.empty_like(x)
        number = [0]

        def fill() -> None:
            self.calls += 1
            number[0] = self.calls
            x.copy_(self.draw(memory.rank, number[0], (length,), dtype))

        def check() -> None:
            parts = [self.draw(rank, number[0], (length,), dtype) for rank in range(memory.size)]
            wrong = int((out != all_reduce_reference(parts)).sum())
            assert not wrong, f"{way}, {length} of {dtype}: {wrong} elements wrong"

        return fill, lambda: KERNELS[way](x, memory, out=out), check

    def norm_case(self) -> tuple[Case, Case, Case]:
        memory, (dtype, shape) = self.memory, (self.rng.choice(DTYPES), self.rng.choice(SHAPES))
        if shape[0] > packet_rows(memory, shape[1], dtype.itemsize):  # fp32 rows of 8,192 fit no program's packets
            dtype = torch.bfloat16
        x, residual, out = (torch.empty(shape, dtype=dtype, device=self.device) for _ in range(3))
        weight = self.draw(99, 0, shape[1:], dtype)
        number = [0]

        def fill() -> None:
            self.calls += 1
            number[0] = self.calls
            x.copy_(self.draw(memory.rank, number[0], shape, dtype))
            residual.copy_(self.draw(98, number[0], shape, dtype))

        def check() -> None:
            parts = [self.draw(rank, number[0], shape, dtype) for rank in range(memory.size)]
            before = self.draw(98, number[0], shape, dtype)
            want, added = all_reduce_norm_reference(parts, before, weight, EPS)
            assert torch.equal(residual, added), f"norm of {shape}, {dtype}: the residual stream is wrong"
            assert_close(out, want, name=f"norm of {shape}, {dtype}")

        return fill, lambda: packet_all_reduce_norm(x, residual, weight, EPS, memory, out=out), check

    def layer(
        self, inputs: Sequence[torch.Tensor], residual: torch.Tensor
    ) -> tuple[Case, Callable[[], tuple[torch.Tensor, list[Parts]]]]:
        """Fills what a layer's sums read; and tells what that was: the stream, and of each sum the ranks' parts."""
        number, drawn = [0], (residual.shape, residual.dtype)

        def fill() -> None:
            self.calls += len(inputs)
            number[0] = self.calls
            residual.copy_(self.draw(98, number[0], *drawn))
            for half, x in enumerate(inputs):
                x.copy_(self.draw(self.memory.rank, number[0] + half, *drawn))

        def filled() -> tuple[torch.Tensor, list[Parts]]:
            return self.draw(98, number[0], *drawn), [
                [self.draw(rank, number[0] + half, *drawn) for rank in range(self.memory.size)]
                for half in range(len(inputs))
            ]

        return fill, filled

    def own_norm_case(self) -> tuple[Case, Case, Case]:
        """Twice, as in a layer: the second call finds the residual stream where the first left it."""
        memory, (dtype, shape) = self.memory, (self.rng.choice(DTYPES), self.rng.choice(LARGE_SHAPES))
        if shape[0] > two_shot_norm_rows(memory, shape[1], dtype.itemsize):
            dtype = torch.bfloat16
        inputs, outs = ([torch.empty(shape, dtype=dtype, device=self.device) for _ in range(2)] for _ in range(2))
        residual, weight = torch.empty_like(inputs[0]), self.draw(99, 0, shape[1:], dtype)
        own = own_rows(memory, shape[0])
        fill, filled = self.layer(inputs, residual)

        def run() -> None:
            for x, out in zip(inputs, outs, strict=True):
                two_shot_all_reduce_norm(x, residual, weight, EPS, memory, out=out)

        def check() -> None:
            stream, sums = filled()
            for parts, out in zip(sums, outs, strict=True):
                want, stream = all_reduce_norm_reference(parts, stream, weight, EPS)
                assert_close(out, want, name=f"norm of own rows of {shape}, {dtype}")
            assert torch.equal(residual[own], stream[own]), f"norm of own rows of {shape}, {dtype}: residual stream"

        return fill, run, check

    def rows_case(self) -> tuple[Case, Case, Case]:
        """Some rows of a stream after a layer's two sums, whichever way those went."""
        dtype, shape = self.rng.choice(DTYPES), self.rng.choice(LARGEST_SHAPES)
        inputs = [torch.empty(shape, dtype=dtype, device=self.device) for _ in range(2)]
        residual, weight = torch.empty_like(inputs[0]), self.draw(99, 0, shape[1:], dtype)
        rows = torch.tensor([self.rng.randrange(shape[0]) for _ in range(min(shape[0], 40))], device=self.device)
        read = torch.empty(len(rows), shape[1], dtype=dtype, device=self.device)
        fill, filled = self.layer(inputs, residual)

        def run() -> None:
            for x in inputs:
                self.communicator.all_reduce_norm(x, residual, weight, EPS)
            read.copy_(self.communicator.whole_rows(residual, rows))

        def check() -> None:
            stream, sums = filled()
            for parts in sums:
                _, stream = all_reduce_norm_reference(parts, stream, weight, EPS)
            assert torch.equal(read, stream[rows]), f"rows of a stream of {shape}, {dtype}"

        return fill, run, check


def eager(sums: Sums) -> None:
    """Runs of several calls between checks, so that kernels follow each other closely."""
    for _ in range(EAGER // 3):
        cases = [sums.case() for _ in range(3)]
        for fill, _, _ in cases:
            fill()
        ran = [sums.attempt(run, "eager") for _, run, _ in cases]
        for (_, _, check), done in zip(cases, ran, strict=True):
            if done:
                sums.expect(check, "eager")


def graphs(sums: Sums) -> None:
    """Graphs of several sums, replayed in any order, some twice in a row."""
    captured = []
    for _ in range(GRAPHS):
        cases = [sums.case() for _ in range(sums.rng.choice((1, 2, 5)))]
        for fill, _, _ in cases:
            fill()
        cases = [case for case in cases if sums.attempt(case[1], "before a graph")]
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            for _, run, _ in cases:
                run()
        captured.append((graph, cases))
    for _ in range(REPLAYS):
        chosen = sums.rng.choices(captured, k=sums.rng.choice((1, 3)))
        for graph, cases in chosen:
            for fill, _, _ in cases:
                fill()
            graph.replay()
        graph, cases = chosen[-1]
        for _, _, check in cases:
            sums.expect(check, "graph")


def library_agrees(communicator: GroupCommunicator, sums: Sums) -> None:
    """NCCL's sums have the same bits on every rank."""
    for length in (4096, 1 << 18, 5_000_001, 1 << 25):
        total = communicator.library_all_reduce(sums.draw(communicator.rank, length, (length,), torch.bfloat16))
        bits = int(total.view(torch.int16).long().mul(torch.arange(length, device=total.device) % 8191 + 1).sum())
        low, high = communicator.least([bits, -bits])  # every rank asks, whatever came of it
        assert low == -high, f"NCCL: ranks differ at {length} elements"


def stop_frees(communicator: GroupCommunicator) -> None:
    """A kernel whose peers never come ends when told to."""
    assert communicator.peers is not None
    if communicator.rank:
        return
    x = torch.ones(8, 4096, dtype=torch.bfloat16, device="cuda")
    for kernel in KERNELS.values():
        kernel(x, communicator.peers.memory)
    for norm in (packet_all_reduce_norm, two_shot_all_reduce_norm):
        norm(x, x.clone(), x[0].clone(), EPS, communicator.peers.memory)
    done = torch.cuda.Event()
    done.record()
    time.sleep(0.5)
    assert not done.query(), "nobody was waited for"
    began = time.monotonic()
    communicator.peers.stop()
    done.synchronize()
    took = time.monotonic() - began
    print(f"five waiting kernels ended {took:.4f} s after the stop")
    assert took < STOP_SECONDS, f"a stop took {took:.2f} s"


def main(rank: int, size: int, store: str) -> None:
    torch.cuda.set_device(rank)
    device = torch.device("cuda", rank)
    communicator = join(rank, size, store, device)
    assert communicator.peers is not None, "the GPUs share no memory: see the warnings above"
    sums = Sums(communicator, communicator.peers.memory, device)
    for name, part in {"eager": eager, "graphs": graphs}.items():
        began = time.monotonic()
        part(sums)
        torch.cuda.synchronize()
        print(f"rank {rank}: {name}: {sums.calls} sums so far, {time.monotonic() - began:.1f} s", flush=True)
    sums.expect(lambda: library_agrees(communicator, sums), "library")
    sums.expect(lambda: stop_frees(communicator), "stop")
    communicator.least([0])
    communicator.close()
    if sums.failures:
        raise SystemExit("\n".join([f"rank {rank}: {len(sums.failures)} failures", *sums.failures[:25]]))
    print(f"rank {rank}: right", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
