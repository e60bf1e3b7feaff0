"""The sum of small tensors over the GPUs of one machine in one kernel, through memory that each can read.

    out = x₀ + x₁ + … + x₍ₛ₋₁₎, in fp32 and in rank order on every rank, rounded once: the same bits everywhere

For sizes where latency counts: each rank reads all parts, size - 1 of them over the links. NVLink multicast is not
used. Captured in a graph it may be replayed: everything that changes between calls is in device memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ._all_reduce import one_shot_all_reduce_kernel
from .launch import Launch, next_power_of_2, require
from .work import Work

PROGRAMS = 64
"""Programs at most. All of a rank's must run at once, since they wait for peers: far fewer than multiprocessors."""
CHUNK = 8192
"""Elements a program handles at most: 512 Ki elements a call, 1 MiB of bf16."""
BLOCK = 1024
"""Elements at once: 8 a thread, one 16-byte access of bf16."""


@dataclass(frozen=True, slots=True)
class PeerMemory:
    """What the ranks of one machine share. Whoever makes it keeps the memory behind the addresses.

    `buffers`, `signals`: int64 [size], each rank's addresses as this rank maps them: a buffer of `buffer_elements` and
    `signal_count` int32, zero at birth. `epochs`: int32 [PROGRAMS], this rank's own, zero at birth.
    """

    rank: int
    size: int
    buffers: torch.Tensor
    signals: torch.Tensor
    epochs: torch.Tensor

    def __post_init__(self) -> None:
        for table in (self.buffers, self.signals):
            require(table.shape == (self.size,) and table.dtype == torch.int64, "one_shot_all_reduce: address tables")
        require(self.epochs.shape == (PROGRAMS,) and self.epochs.dtype == torch.int32, "one_shot_all_reduce: epochs")


def buffer_elements() -> int:
    """Elements of a rank's buffer, of the type summed."""
    return 2 * PROGRAMS * CHUNK


def signal_count(size: int) -> int:
    """int32 of a rank's signals."""
    return PROGRAMS * next_power_of_2(size)


def largest() -> int:
    """Elements of the largest sum."""
    return PROGRAMS * CHUNK


def one_shot_all_reduce(x: torch.Tensor, memory: PeerMemory, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """The sum of every rank's `x` (contiguous, the same shape everywhere, at most `largest()` elements). `out` may be
    `x`. Every rank makes the same calls in the same order."""
    out = torch.empty_like(x) if out is None else out
    one_shot_all_reduce_launch(x, memory, out=out).run()
    return out


def one_shot_all_reduce_launch(x: torch.Tensor, memory: PeerMemory, *, out: torch.Tensor) -> Launch:
    """The launch behind `one_shot_all_reduce`: as many programs as there are blocks, up to PROGRAMS."""
    require(
        x.is_contiguous() and out.is_contiguous() and out.shape == x.shape, "one_shot_all_reduce: contiguous x, out"
    )
    require(x.dtype == out.dtype and x.dtype.is_floating_point, "one_shot_all_reduce: one floating type")
    require(0 < x.numel() <= largest(), f"one_shot_all_reduce: 1 to {largest()} elements, not {x.numel()}")
    return Launch(
        one_shot_all_reduce_kernel,
        (min(-(-x.numel() // BLOCK), PROGRAMS),),
        {
            "x_ptr": x,
            "out_ptr": out,
            "buffers_ptr": memory.buffers,
            "signals_ptr": memory.signals,
            "epochs_ptr": memory.epochs,
            "n": x.numel(),
            "rank": memory.rank,
        },
        {
            "SIZE": memory.size,
            "LANES": next_power_of_2(memory.size),
            "PROGRAMS": PROGRAMS,
            "CHUNK": CHUNK,
            "BLOCK": BLOCK,
        },
        num_warps=4,
    )


def one_shot_all_reduce_reference(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum in torch: fp32, in the order of the ranks, rounded once."""
    total = torch.zeros_like(parts[0], dtype=torch.float32)
    for part in parts:
        total += part.float()
    return total.to(parts[0].dtype)


def one_shot_all_reduce_work(elements: int, size: int, itemsize: int = 2) -> Work:
    """x read and staged, every part read, the sum written."""
    return Work(bytes=(3 + size) * elements * itemsize, flops=(size - 1) * elements)
