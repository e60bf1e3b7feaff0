"""One of several ranks whose others are not there: what it would launch for their sums can be written down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from thranite.layers.communicator import Alone
from thranite.parallel.peer_sums import (
    KERNELS,
    NORM_KERNELS,
    PROOF_DTYPE,
    PROOF_ELEMENTS,
    PROOF_EPS,
    PROOF_WIDTH,
    PeerSums,
)
from thranite_kernels.peer_memory import PROGRAMS, PeerMemory


class PretendedRanks(Alone):
    """A `Communicator` for the pretended GPU. `multiprocessors`: of each of the GPUs; `peers`: they share memory."""

    def __init__(self, rank: int, size: int, device: torch.device, multiprocessors: int, *, peers: bool) -> None:
        self.rank, self.size = rank, size
        self._sums: PeerSums | None = None
        if peers:
            memory = PeerMemory.of(rank, [0] * size, 0, device, min(PROGRAMS, multiprocessors))
            nowhere: Any = None  # pieces are asked to stop and to close, which nobody does here
            self._sums = PeerSums(nowhere, memory)
            _prove(memory)

    def all_reduce(self, x: Tensor) -> Tensor:
        if self._sums is not None:
            self._sums.all_reduce(x)
        return x

    def all_reduce_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor | None:
        return None if self._sums is None else self._sums.all_reduce_norm(x, residual, weight, eps)

    def whole_rows(self, stream: Tensor, rows: Tensor) -> Tensor:
        own = None if self._sums is None else self._sums.own_part(stream, rows)
        return stream[rows] if own is None else self.all_reduce(own)

    def all_gather(self, x: Tensor) -> Tensor:
        rows, columns = x.shape
        return x.new_empty(rows, self.size * columns)

    def least(self, values: Sequence[int]) -> list[int]:
        return list(values)


def _prove(memory: PeerMemory) -> None:
    """The launches of `peer_sums.prove`."""
    x = torch.zeros(PROOF_ELEMENTS, dtype=PROOF_DTYPE, device=memory.epochs.device)
    for kernel in KERNELS.values():
        kernel(x, memory)
    rows = x.view(-1, PROOF_WIDTH)
    for norm in NORM_KERNELS.values():
        norm(rows, rows, rows[0], PROOF_EPS, memory, out=rows)
