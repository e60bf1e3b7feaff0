"""The sum of tensors over the GPUs of one machine in one kernel, through memory that each can read.

    out = x₀ + x₁ + … + x₍ₛ₋₁₎, in fp32 and in rank order on every rank, rounded once: the same bits everywhere

One-shot: each rank reads all parts, size - 1 of them over the links; one meeting. Two-shot: each rank adds 1/size of
the elements and reads the others' sums; two meetings, less over the links where there are more than two ranks. (The
algorithms are those of TensorRT-LLM's and vLLM's sums, with flags a program.) NVLink multicast is not used. Captured in
a graph they may be replayed in any order: everything that changes between calls is in device memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ._all_reduce import one_shot_all_reduce_kernel, two_shot_all_reduce_kernel
from .launch import Launch, next_power_of_2, require
from .peer_memory import CHUNK_BYTES, PROGRAMS, PeerMemory
from .rms_norm import rms_norm_reference
from .target import overlaps
from .work import Work

ONE_SHOT_BLOCK, ONE_SHOT_WARPS = 2048, 8
TWO_SHOT_BLOCK, TWO_SHOT_WARPS = 4096, 16
"""Elements at once: 8 a thread, one 16-byte access of bf16."""


def one_shot_largest(memory: PeerMemory, itemsize: int) -> int:
    """Elements of the largest sum."""
    return memory.programs * (CHUNK_BYTES // itemsize)


def two_shot_largest(memory: PeerMemory, itemsize: int) -> int:
    """Elements of the largest sum: a program's share is whole blocks for each rank."""
    unit = memory.size * TWO_SHOT_BLOCK
    return memory.programs * (CHUNK_BYTES // itemsize // unit * unit)


def one_shot_all_reduce(x: torch.Tensor, memory: PeerMemory, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """The sum of every rank's `x` (contiguous, the same shape everywhere, at most `one_shot_largest` elements). `out`
    may be `x`. Every rank makes the same calls in the same order."""
    out = torch.empty_like(x) if out is None else out
    one_shot_all_reduce_launch(x, memory, out=out).run()
    return out


def two_shot_all_reduce(x: torch.Tensor, memory: PeerMemory, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """As `one_shot_all_reduce`, of at most `two_shot_largest` elements."""
    out = torch.empty_like(x) if out is None else out
    two_shot_all_reduce_launch(x, memory, out=out).run()
    return out


def one_shot_all_reduce_launch(x: torch.Tensor, memory: PeerMemory, *, out: torch.Tensor) -> Launch:
    """The launch behind `one_shot_all_reduce`: as many programs as there are blocks, up to the memory's."""
    largest = one_shot_largest(memory, x.itemsize)
    return _launch(one_shot_all_reduce_kernel, x, memory, out, largest, 1, ONE_SHOT_BLOCK, ONE_SHOT_WARPS)


def two_shot_all_reduce_launch(x: torch.Tensor, memory: PeerMemory, *, out: torch.Tensor) -> Launch:
    """The launch behind `two_shot_all_reduce`: a program for a block of each rank, up to the memory's."""
    largest = two_shot_largest(memory, x.itemsize)
    return _launch(two_shot_all_reduce_kernel, x, memory, out, largest, memory.size, TWO_SHOT_BLOCK, TWO_SHOT_WARPS)


def _launch(
    kernel: Any,
    x: torch.Tensor,
    memory: PeerMemory,
    out: torch.Tensor,
    largest: int,
    slices: int,
    block: int,
    warps: int,
) -> Launch:
    require(x.is_contiguous() and out.is_contiguous() and out.shape == x.shape, "all_reduce: contiguous x, out")
    require(x.dtype == out.dtype and x.dtype.is_floating_point, "all_reduce: one floating type")
    require(0 < x.numel() <= largest, f"all_reduce: 1 to {largest} elements, not {x.numel()}")
    return Launch(
        kernel,
        (min(-(-x.numel() // (slices * block)), memory.programs),),
        {
            "x_ptr": x,
            "out_ptr": out,
            "buffers_ptr": memory.buffers,
            "signals_ptr": memory.signals,
            "stop_ptr": memory.stop,
            "epochs_ptr": memory.epochs[0],
            "n": x.numel(),
        },
        {
            "RANK": memory.rank,
            "SIZE": memory.size,
            "LANES": next_power_of_2(memory.size),
            "PROGRAMS": PROGRAMS,
            "CHUNK": CHUNK_BYTES // x.itemsize,
            "BLOCK": block,
            "PDL": overlaps(x),
        },
        num_warps=warps,
    )


def all_reduce_reference(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum in torch: fp32, in the order of the ranks, rounded once."""
    total = torch.zeros_like(parts[0], dtype=torch.float32)
    for part in parts:
        total += part.float()
    return total.to(parts[0].dtype)


def all_reduce_norm_reference(
    parts: Sequence[torch.Tensor], residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`(out, updated residual of all rows)` in torch, with the roundings of both kernels that add and normalise."""
    out, added = rms_norm_reference(all_reduce_reference(parts), weight, eps, residual=residual)
    assert added is not None
    return out, added


def one_shot_all_reduce_work(elements: int, size: int, itemsize: int = 2) -> Work:
    """x read and staged, every part read, the sum written."""
    return Work(bytes=(3 + size) * elements * itemsize, flops=(size - 1) * elements)


def two_shot_all_reduce_work(elements: int, size: int, itemsize: int = 2) -> Work:
    """The others' slices of x read and staged; one slice of every rank read, its sum written twice; the others' sums
    read and written."""
    slices = 2 * (size - 1) + (size + 2) + 2 * (size - 1)
    return Work(bytes=slices * elements * itemsize // size, flops=(size - 1) * elements // size)
