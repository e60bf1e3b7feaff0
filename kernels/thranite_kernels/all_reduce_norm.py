"""Large sums over the GPUs of one machine with what follows in a layer: added to the residual stream, normalised.

    h = x₀ + x₁ + … + residual      out = h / √(mean h² + ε) · w

Two shots: every rank adds and normalises 1/size of the rows and reads the others'. The links carry what the sum alone
would send over them; the norm is computed once instead of on every rank; the stream moves through one rank's memory.

**A rank keeps the residual stream of its own rows alone.** Which rows are whose depends on the shape and the memory, so
calls of one shape after another keep a stream; whoever else reads it reads each row from the rank that keeps it
(`own_rows`).
"""

from __future__ import annotations

import torch

from ._all_reduce_norm import two_shot_all_reduce_norm_kernel
from .launch import Launch, cdiv, next_power_of_2
from .peer_memory import CHUNK_BYTES, PROGRAMS, PeerMemory, check_norm
from .target import overlaps
from .work import Work

WARPS = 16
TILE = 8192
"""Elements at once: 16 a thread, two 16-byte accesses of bf16 on their way."""
MAX_WIDTH = 16384


def two_shot_norm_rows(memory: PeerMemory, width: int, itemsize: int) -> int:
    """Rows of the largest `two_shot_all_reduce_norm`; 0 for rows that are too wide."""
    if width > MAX_WIDTH:
        return 0
    return memory.programs * (CHUNK_BYTES // (memory.size * width * itemsize)) * memory.size


def own_rows(memory: PeerMemory, rows: int) -> torch.Tensor:
    """bool [rows], on the memory's device: those whose residual stream this rank keeps."""
    return torch.arange(rows, device=memory.epochs.device) // _share(memory, rows) % memory.size == memory.rank


def two_shot_all_reduce_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    memory: PeerMemory,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """x, residual [T, N] contiguous, weight [N], all of one type, T at most `two_shot_norm_rows`. `residual` is read
    and updated in this rank's own rows. Returns the normalised rows [T, N]; `out` may be `x`. Every rank makes the same
    calls in the same order."""
    out = torch.empty_like(x) if out is None else out
    two_shot_all_reduce_norm_launch(x, residual, weight, eps, memory, out=out).run()
    return out


def two_shot_all_reduce_norm_launch(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, memory: PeerMemory, *, out: torch.Tensor
) -> Launch:
    """The launch behind `two_shot_all_reduce_norm`: equal numbers of rows for as few programs as those need."""
    rows, width = x.shape
    check_norm("two_shot_all_reduce_norm", x, residual, weight, out, two_shot_norm_rows(memory, width, x.itemsize))
    share, block = _share(memory, rows), next_power_of_2(width)
    return Launch(
        two_shot_all_reduce_norm_kernel,
        (cdiv(rows, share * memory.size),),
        {
            "x_ptr": x,
            "residual_ptr": residual,
            "weight_ptr": weight,
            "out_ptr": out,
            "buffers_ptr": memory.buffers,
            "signals_ptr": memory.signals,
            "stop_ptr": memory.stop,
            "epochs_ptr": memory.epochs[0],
            "rows": rows,
            "share": share,
            "eps": eps,
        },
        {
            "N": width,
            "RANK": memory.rank,
            "SIZE": memory.size,
            "LANES": next_power_of_2(memory.size),
            "PROGRAMS": PROGRAMS,
            "CHUNK": CHUNK_BYTES // x.itemsize,
            "ROWS": min(max(TILE // block, 1), 8),
            "BLOCK": block,
            "COPY": TILE,
            "PDL": overlaps(x),
        },
        num_warps=WARPS,
    )


def _share(memory: PeerMemory, rows: int) -> int:
    """Rows that one rank adds for one program."""
    return cdiv(cdiv(rows, memory.programs), memory.size)


def two_shot_all_reduce_norm_work(elements: int, size: int, itemsize: int = 2) -> Work:
    """As the two-shot sum; the stream of one slice read and written besides."""
    slices = 2 * (size - 1) + (size + 4) + 2 * (size - 1)
    return Work(bytes=slices * elements * itemsize // size, flops=(size + 4) * elements // size)
