"""Which of the ways to sum over a machine's GPUs a tensor takes: packets, one shot, two shots, or NCCL.

Each adds in rank order and in fp32, so all ranks hold the same bits and draw the same tokens. (NCCL's too: its ring and
its tree compute each element on one rank and copy it to the others.)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from thranite.parallel.peer_pieces import Least, PeerPieces
from thranite_kernels.all_reduce import (
    all_reduce_norm_reference,
    one_shot_all_reduce,
    one_shot_largest,
    two_shot_all_reduce,
    two_shot_largest,
)
from thranite_kernels.all_reduce_norm import own_rows, two_shot_all_reduce_norm, two_shot_norm_rows
from thranite_kernels.packet_sum import (
    packet_all_reduce,
    packet_all_reduce_norm,
    packet_largest,
    packet_rows,
)
from thranite_kernels.peer_memory import ELEMENTS, PeerMemory

logger = logging.getLogger(__name__)

Way = Literal["packets", "one-shot", "two-shot"]
KERNELS: Mapping[Way, Callable[..., Tensor]] = {
    "packets": packet_all_reduce,
    "one-shot": one_shot_all_reduce,
    "two-shot": two_shot_all_reduce,
}
NORM_KERNELS: Mapping[str, Callable[..., Tensor]] = {
    "packets with a norm": packet_all_reduce_norm,
    "two-shot with a norm": two_shot_all_reduce_norm,
}
PROOF_DTYPE, PROOF_ELEMENTS = torch.bfloat16, 1 << 15
PROOF_WIDTH, PROOF_EPS = 512, 1e-5
PROOF_SECONDS = 120.0  # for the slowest rank to have compiled


@dataclass(frozen=True, slots=True)
class Limits:
    """Up to how many bytes each way is the quickest, tried in this order; above all of them NCCL is. `norm`: of the sum
    that is added and normalised in the packets' kernel; larger ones take two shots of whole rows."""

    packets: int
    one_shot: int
    two_shot: int
    norm: int


# By ranks. `thranite bench all-reduce` measures them.
LIMITS: Mapping[int, Limits] = {
    2: Limits(packets=512 << 10, one_shot=8 << 20, two_shot=64 << 20, norm=1 << 20),
    4: Limits(packets=512 << 10, one_shot=0, two_shot=8 << 20, norm=512 << 10),
    8: Limits(packets=256 << 10, one_shot=0, two_shot=8 << 20, norm=256 << 10),
}


def limits(size: int) -> Limits:
    """Of the next larger group in the table, or the largest."""
    return LIMITS[min((known for known in LIMITS if known >= size), default=max(LIMITS))]


def fits(way: Way, x: Tensor, memory: PeerMemory) -> bool:
    """Whether a kernel can sum x at all."""
    if not x.numel() or not x.is_contiguous() or x.dtype not in ELEMENTS:
        return False
    if way == "packets":
        return x.nbytes % 4 == 0 and x.nbytes <= packet_largest(memory)
    largest = one_shot_largest if way == "one-shot" else two_shot_largest
    return x.numel() <= largest(memory, x.itemsize)


def choose(x: Tensor, memory: PeerMemory, table: Limits) -> Way | None:
    """None: NCCL."""
    bounds: tuple[tuple[Way, int], ...] = (
        ("packets", table.packets),
        ("one-shot", table.one_shot),
        ("two-shot", table.two_shot),
    )
    return next((way for way, bound in bounds if x.nbytes <= bound and fits(way, x, memory)), None)


class PeerSums:
    """One rank's. Every rank makes the same calls in the same order."""

    def __init__(self, pieces: PeerPieces, memory: PeerMemory) -> None:
        self.memory = memory
        self._pieces, self._limits = pieces, limits(memory.size)
        self._compiled = {PROOF_DTYPE}

    def all_reduce(self, x: Tensor) -> bool:
        """Sum in place; False where NCCL is quicker."""
        if x.dtype not in self._compiled:
            self._compile(x.dtype)
        way = choose(x, self.memory, self._limits)
        if way is None:
            return False
        KERNELS[way](x, self.memory, out=x)
        return True

    def _compile(self, dtype: torch.dtype) -> None:
        """A model's first step runs outside graphs; a way that its sizes do not take may be a later step's."""
        self._compiled.add(dtype)
        if dtype in ELEMENTS:
            for kernel in KERNELS.values():
                kernel(torch.zeros(PROOF_ELEMENTS, dtype=dtype, device=self.memory.epochs.device), self.memory)

    def all_reduce_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor | None:
        """x [T, N] and the residual [T, N] are overwritten; None where a kernel cannot do it."""
        if x.dtype not in ELEMENTS or weight.dtype != x.dtype or not (x.is_contiguous() and residual.is_contiguous()):
            return None
        if self._fits_packets(x):
            return packet_all_reduce_norm(x, residual, weight, eps, self.memory, out=x)
        most = two_shot_norm_rows(self.memory, x.shape[1], x.itemsize)
        if not len(x) or not most:
            return None
        for part, stream in zip(x.split(most), residual.split(most), strict=True):
            two_shot_all_reduce_norm(part, stream, weight, eps, self.memory, out=part)
        return x

    def own_part(self, stream: Tensor, rows: Tensor) -> Tensor | None:
        """Rows [S] of a stream [T, N] that `all_reduce_norm` takes, zeros for those that another rank keeps: their sum
        over the ranks is whole, to the bit. None where this rank has them whole. By shapes alone, without a wait."""
        most = two_shot_norm_rows(self.memory, stream.shape[1], stream.itemsize)
        if stream.dtype not in ELEMENTS or not len(stream) or not most or self._fits_packets(stream):
            return None
        own = torch.cat([own_rows(self.memory, len(part)) for part in stream.split(most)])
        return stream[rows].masked_fill_(~own[rows].unsqueeze(1), 0.0)

    def _fits_packets(self, x: Tensor) -> bool:
        """Whether `all_reduce_norm` of x takes one packet sum, which leaves every rank the whole stream."""
        rows, width = x.shape
        return x.nbytes <= self._limits.norm and 0 < rows <= packet_rows(self.memory, width, x.itemsize)

    def stop(self) -> None:
        """End all waiting for peers, at once and for good; what sums bring is void. Callable from any thread."""
        self._pieces.stop()


def prove(pieces: PeerPieces, memory: PeerMemory, least: Least) -> PeerSums | None:
    """Sum each way before anything depends on it: memory that maps may still not carry what is written."""
    proved = False
    try:
        # One after another whatever came of those before: a rank that went ahead would leave the others waiting.
        right: dict[str, bool] = {way: _adds_up(way, memory, pieces) for way in KERNELS}
        right |= {way: _normalises(way, memory, pieces) for way in NORM_KERNELS}
        wrong = [way for way, held in right.items() if not held]
        proved = not wrong
        if wrong:
            logger.warning("rank %d: sums through peer memory that came out wrong: %s", memory.rank, ", ".join(wrong))
    except Exception as error:  # noqa: BLE001 - whatever fails here, NCCL does not need it
        pieces.stop()
        logger.warning("sums go through NCCL alone: rank %d: %s: %s", memory.rank, type(error).__name__, error)
    if least([int(proved)])[0]:
        return PeerSums(pieces, memory)
    if memory.rank == 0:
        logger.warning("sums go through NCCL alone: a sum through peer memory came out wrong or not at all")
    pieces.close()
    return None


def _adds_up(way: Way, memory: PeerMemory, pieces: PeerPieces) -> bool:
    """Rank r brings r + 1 everywhere."""
    x = torch.full((PROOF_ELEMENTS,), memory.rank + 1.0, dtype=PROOF_DTYPE, device=memory.epochs.device)
    right = True
    for _ in range(3):  # both halves, and one of them again
        total = KERNELS[way](x, memory)
        _wait(pieces)
        right &= bool((total == memory.size * (memory.size + 1) / 2).all())
    return right


def _normalises(way: str, memory: PeerMemory, pieces: PeerPieces) -> bool:
    """Rank r brings r + 1 times the same rows. Some come near zero with the residual, so that what the sum was rounded
    to is most of what is left: the reference must round as the kernels do."""
    device = memory.epochs.device
    rows = torch.linspace(-1.0, 1.0, PROOF_ELEMENTS, device=device).view(-1, PROOF_WIDTH).to(PROOF_DTYPE)
    weight = torch.linspace(0.5, 1.5, PROOF_WIDTH, device=device).to(PROOF_DTYPE)
    parts = [rows * (rank + 1) for rank in range(memory.size)]
    want, added = all_reduce_norm_reference(parts, torch.ones_like(rows), weight, PROOF_EPS)
    kept = own_rows(memory, len(rows)) if NORM_KERNELS[way] is two_shot_all_reduce_norm else slice(None)
    right = True
    for _ in range(3):
        x, stream = parts[memory.rank].clone(), torch.ones_like(rows)
        got = NORM_KERNELS[way](x, stream, weight, PROOF_EPS, memory, out=x)
        _wait(pieces)
        right &= _close(got, want) and _close(stream[kept], added[kept])
    return right


def _close(got: Tensor, want: Tensor) -> bool:
    return bool(torch.isclose(got.float(), want.float(), rtol=0.02, atol=0.02).all())


def _wait(pieces: PeerPieces) -> None:
    """For all that was launched; a kernel that waits for a peer too long is stopped."""
    done = torch.cuda.Event()
    done.record()
    deadline = time.monotonic() + PROOF_SECONDS
    while not done.query():
        if time.monotonic() > deadline:
            pieces.stop()
        time.sleep(0.0005)
