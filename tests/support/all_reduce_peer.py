"""`python -m tests.support.all_reduce_peer RANK SIZE FILE SEED`: one rank of sums in Triton's interpreter.

The ranks are processes over one shared file, each of which maps it elsewhere: as GPUs map each other's memory. Whoever
starts one sets TRITON_INTERPRET=1 in its environment: set at import, it would turn importers' kernels over as well.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable

import torch
from triton.runtime import interpreter

from tests.support.interpreter import remember_replacements
from thranite_kernels.all_reduce import (
    all_reduce_norm_reference,
    all_reduce_reference,
    one_shot_all_reduce,
    two_shot_all_reduce,
)
from thranite_kernels.all_reduce_norm import (
    own_rows,
    two_shot_all_reduce_norm,
)
from thranite_kernels.packet_sum import packet_all_reduce, packet_all_reduce_norm
from thranite_kernels.peer_memory import PeerMemory, piece_bytes
from thranite_kernels.testing import assert_close

PROGRAMS = 3  # so that each has several blocks
DTYPES = (torch.float16, torch.float32)  # the interpreter cannot multiply bfloat16
LENGTHS = (1, 7, 2048, 2049, 5000, 3, 20_001, 4096)
SHAPES = ((1, 64), (5, 30), (7, 2), (3, 1000), (11, 64))
MORE_SHAPES = (*SHAPES, (61, 200), (3, 2049), (130, 8))
CALLS = 12
EPS = 1e-5

Draw = Callable[[int], torch.Tensor]


def part(rank: int, call: int, *shape: int, dtype: torch.dtype) -> torch.Tensor:
    """What a rank brings: any other rank can compute it."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1000 * call + rank)).to(dtype)


def memory_of(rank: int, size: int, shared: torch.Tensor, stop: torch.Tensor) -> PeerMemory:
    pieces = [shared.data_ptr() + index * piece_bytes(size) for index in range(size)]
    return PeerMemory.of(rank, pieces, stop.data_ptr(), "cpu", PROGRAMS)


def flat_sum(call: int, rng: random.Random, memory: PeerMemory) -> None:
    dtype, length = rng.choice(DTYPES), rng.choice(LENGTHS)
    kernel = rng.choice((one_shot_all_reduce, two_shot_all_reduce, packet_all_reduce))
    if kernel is packet_all_reduce:  # whole words, and no more than there is room for
        length = min(length + length % 2, 3000)
    parts = [part(rank, call, length, dtype=dtype) for rank in range(memory.size)]
    x = parts[memory.rank].clone()
    out = kernel(x, memory, out=x if rng.random() < 0.5 else None)
    if not torch.equal(out, all_reduce_reference(parts)):
        raise SystemExit(f"rank {memory.rank}: {kernel.__name__} {call} of {length} elements is wrong")


def sum_and_norm(call: int, rng: random.Random, memory: PeerMemory) -> None:
    dtype, (rows, width) = rng.choice(DTYPES), rng.choice(SHAPES)
    parts = [part(rank, call, rows, width, dtype=dtype) for rank in range(memory.size)]
    residual, weight = part(98, call, rows, width, dtype=dtype), part(99, call, width, dtype=dtype)
    want, added = all_reduce_norm_reference(parts, residual, weight, EPS)
    out = packet_all_reduce_norm(parts[memory.rank], residual, weight, EPS, memory)
    if not torch.equal(residual, added):
        raise SystemExit(f"rank {memory.rank}: the residual of call {call}, {rows} x {width}, is wrong")
    assert_close(out, want, name=f"rank {memory.rank}, call {call}")


def sum_and_norm_of_own_rows(call: int, rng: random.Random, memory: PeerMemory) -> None:
    """A layer's two sums: the second finds the stream where the first left it."""
    dtype, (rows, width) = rng.choice(DTYPES), rng.choice(MORE_SHAPES)
    residual, weight = part(98, call, rows, width, dtype=dtype), part(99, call, width, dtype=dtype)
    stream, own = residual.clone(), own_rows(memory, rows)
    for half in range(2):
        parts = [part(rank, 100 * call + half, rows, width, dtype=dtype) for rank in range(memory.size)]
        x = parts[memory.rank].clone()
        want, stream = all_reduce_norm_reference(parts, stream, weight, EPS)
        out = two_shot_all_reduce_norm(x, residual, weight, EPS, memory, out=x if rng.random() < 0.5 else None)
        if not torch.equal(residual[own], stream[own]):
            raise SystemExit(f"rank {memory.rank}: the residual of call {call}, {rows} x {width}, is wrong")
        assert_close(out, want, name=f"rank {memory.rank}, call {call}")


def main(rank: int, size: int, path: str, seed: int) -> None:
    """The same calls in the same order on every rank, each at its own pace."""
    shared = torch.from_file(path, shared=True, size=size * piece_bytes(size), dtype=torch.uint8)
    stop = torch.zeros(1, dtype=torch.int32)
    memory = memory_of(rank, size, shared, stop)
    common, own = random.Random(seed), random.Random(f"{seed}/{rank}")
    for call in range(CALLS):
        time.sleep(own.choice((0.0, 0.0, 0.02)))
        common.choice((flat_sum, sum_and_norm, sum_and_norm_of_own_rows))(call, common, memory)
    stop.fill_(1)  # a peer that never comes is not waited for
    if rank == 0:
        x = torch.ones(2, 4, dtype=torch.float16)
        for kernel in (one_shot_all_reduce, two_shot_all_reduce, packet_all_reduce):
            kernel(x, memory)
        for norm in (packet_all_reduce_norm, two_shot_all_reduce_norm):
            norm(x, x.clone(), x[0], EPS, memory)


if __name__ == "__main__":
    remember_replacements(interpreter)
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
