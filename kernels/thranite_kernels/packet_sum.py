"""Small sums over the GPUs of one machine, one way over the links: for decode steps, where latency counts.

    packet_all_reduce        out = x₀ + x₁ + …, in fp32 and in rank order on every rank, rounded once
    packet_all_reduce_norm   the same, then h = sum + residual (rounded, written back) and out = h / √(mean h² + ε) · w

Ranks push their parts into their peers' memory, each 32-bit word with the call's count beside it; a peer waits for the
words themselves. That is twice the bytes and no signal: the quickest way for some hundred KiB. The second saves a
kernel and a pass over both tensors twice a layer. Graphs may replay them in any order.
"""

from __future__ import annotations

import torch

from ._packet_sum import packet_all_reduce_kernel, packet_all_reduce_norm_kernel
from .launch import Launch, next_power_of_2, require
from .peer_memory import ELEMENTS, PACKETS, PROGRAMS, PeerMemory, check_norm
from .target import overlaps
from .work import Work

BLOCK, WARPS = 256, 4
"""Words at once: 2 a thread, whose packets are one 16-byte access."""


def packet_largest(memory: PeerMemory) -> int:
    """Bytes of the largest sum."""
    return memory.programs * PACKETS * 4


def packet_rows(memory: PeerMemory, width: int, itemsize: int) -> int:
    """Rows of the largest `packet_all_reduce_norm`; 0 for rows that do not fit or are no whole number of words."""
    return 0 if width * itemsize % 4 else memory.programs * (PACKETS // (width * itemsize // 4))


def packet_all_reduce(x: torch.Tensor, memory: PeerMemory, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """The sum of every rank's `x` (contiguous, the same shape everywhere, whole 32-bit words, at most `packet_largest`
    bytes). `out` may be `x`. Every rank makes the same calls in the same order."""
    out = torch.empty_like(x) if out is None else out
    packet_all_reduce_launch(x, memory, out=out).run()
    return out


def packet_all_reduce_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    memory: PeerMemory,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """x, residual [T, N] contiguous, weight [N], all of one type, T at most `packet_rows`. `residual`, the same on
    every rank, is updated in place. Returns the normalised rows [T, N]; `out` may be `x`."""
    out = torch.empty_like(x) if out is None else out
    packet_all_reduce_norm_launch(x, residual, weight, eps, memory, out=out).run()
    return out


def packet_all_reduce_launch(x: torch.Tensor, memory: PeerMemory, *, out: torch.Tensor) -> Launch:
    """The launch behind `packet_all_reduce`: as many programs as there are blocks, up to the memory's."""
    size = x.numel() * x.itemsize
    require(x.is_contiguous() and out.is_contiguous() and out.shape == x.shape, "packet_all_reduce: contiguous x, out")
    require(x.dtype == out.dtype and x.dtype in ELEMENTS, "packet_all_reduce: one floating type of at most 4 bytes")
    require(size % 4 == 0, "packet_all_reduce: whole 32-bit words")
    require(0 < size <= packet_largest(memory), f"packet_all_reduce: 1 to {packet_largest(memory)} bytes, not {size}")
    return Launch(
        packet_all_reduce_kernel,
        (min(-(-size // (4 * BLOCK)), memory.programs),),
        {"x_ptr": x, "out_ptr": out, **_shared(memory), "words": size // 4},
        {**_constants(memory), "BLOCK": BLOCK, "PDL": overlaps(x)},
        num_warps=WARPS,
    )


def packet_all_reduce_norm_launch(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, memory: PeerMemory, *, out: torch.Tensor
) -> Launch:
    """The launch behind `packet_all_reduce_norm`: a program a row, or several rows a program."""
    rows, width = x.shape
    check_norm("packet_all_reduce_norm", x, residual, weight, out, packet_rows(memory, width, x.itemsize))
    words = width * x.itemsize // 4
    block = next_power_of_2(words)
    return Launch(
        packet_all_reduce_norm_kernel,
        (min(rows, memory.programs),),
        {
            "x_ptr": x,
            "residual_ptr": residual,
            "weight_ptr": weight,
            "out_ptr": out,
            **_shared(memory),
            "rows": rows,
            "eps": eps,
        },
        {"WORDS": words, "N": width, **_constants(memory), "BLOCK": block, "PDL": overlaps(x)},
        num_warps=min(max(block // 128, 1), 16),
    )


def _shared(memory: PeerMemory) -> dict[str, torch.Tensor]:
    return {"packets_ptr": memory.packets, "stop_ptr": memory.stop, "epochs_ptr": memory.epochs[1]}


def _constants(memory: PeerMemory) -> dict[str, int]:
    return {"RANK": memory.rank, "SIZE": memory.size, "PROGRAMS": PROGRAMS, "CHUNK": PACKETS}


def packet_all_reduce_work(elements: int, size: int, itemsize: int = 2) -> Work:
    """x read, its packets written to each peer and read from each, the sum written."""
    return Work(bytes=(2 + 4 * (size - 1)) * elements * itemsize, flops=(size - 1) * elements)
