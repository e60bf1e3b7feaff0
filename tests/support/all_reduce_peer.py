"""`python -m tests.support.all_reduce_peer RANK SIZE FILE`: one rank of sums in Triton's interpreter.

The ranks are processes over one shared file, each of which maps it elsewhere: as GPUs map each other's memory. Whoever
starts one sets TRITON_INTERPRET=1 in its environment: set at import, it would turn importers' kernels over as well.
"""

from __future__ import annotations

import sys

import torch

from thranite_kernels.all_reduce import (
    PROGRAMS,
    PeerMemory,
    buffer_elements,
    one_shot_all_reduce,
    one_shot_all_reduce_reference,
    signal_count,
)

DTYPE = torch.float16
LENGTHS = [1, 7, 1024, 1025, 5000, 3, 70_001, 2048]


def part(rank: int, call: int, length: int) -> torch.Tensor:
    """What a rank brings: any other rank can compute it."""
    return torch.randn(length, generator=torch.Generator().manual_seed(1000 * call + rank)).to(DTYPE)


def rank_bytes(size: int) -> int:
    return buffer_elements() * DTYPE.itemsize + signal_count(size) * 4


def peer_memory(rank: int, size: int, shared: torch.Tensor) -> PeerMemory:
    base = shared.data_ptr()
    buffers = [base + index * rank_bytes(size) for index in range(size)]
    signals = [address + buffer_elements() * DTYPE.itemsize for address in buffers]
    return PeerMemory(
        rank, size, torch.tensor(buffers), torch.tensor(signals), torch.zeros(PROGRAMS, dtype=torch.int32)
    )


def main(rank: int, size: int, path: str) -> None:
    shared = torch.from_file(path, shared=True, size=size * rank_bytes(size), dtype=torch.uint8)
    memory = peer_memory(rank, size, shared)
    for call, length in enumerate(LENGTHS):
        x = part(rank, call, length)
        out = one_shot_all_reduce(x, memory, out=x if call % 2 else None)
        want = one_shot_all_reduce_reference([part(index, call, length) for index in range(size)])
        if not torch.equal(out, want):
            raise SystemExit(f"rank {rank}: sum {call} of {length} elements is wrong")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
