"""Tensor-parallel ranks as threads of one process, with a communicator that adds in rank order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

from thranite.layers.norm import rms_norm

Result = TypeVar("Result")
TIMEOUT = 60.0
FEW_ROWS = 4


class ThreadGroup:
    """What the threads share. A rank that fails breaks the barrier, so that the others fail too."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=TIMEOUT)
        self.given: list[Any] = [None] * size
        self.sums = 0


class ThreadCommunicator:
    """A `thranite.layers.communicator.Communicator`."""

    def __init__(self, group: ThreadGroup, rank: int) -> None:
        self.rank, self.size = rank, group.size
        self._group = group

    def _exchange(self, value: Any) -> list[Any]:
        self._group.given[self.rank] = value
        self._group.barrier.wait()
        values = list(self._group.given)
        self._group.barrier.wait()
        return values

    def all_reduce(self, x: Tensor) -> Tensor:
        assert x.is_contiguous()
        parts = self._exchange(x.clone())
        assert len({part.shape for part in parts}) == 1
        if self.rank == 0:
            self._group.sums += 1
        return torch.stack(parts).sum(0)

    def all_reduce_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor | None:
        """Two ranks have kernels for it, more have none: all ways are gone. Of many rows a rank keeps the stream of its
        own alone; who reads that of others finds no number."""
        if self.size > 2 or weight.dtype != x.dtype:
            return None
        out = rms_norm(residual.add_(self.all_reduce(x)), (x.shape[-1],), weight, eps)
        if x.shape[0] <= FEW_ROWS:
            return out
        keeper = self._keeper(residual)
        residual[keeper != self.rank] = torch.nan
        outs = torch.stack(self._exchange(out))
        return outs[keeper, torch.arange(x.shape[0])]

    def whole_rows(self, stream: Tensor, rows: Tensor) -> Tensor:
        if self.size > 2 or stream.shape[0] <= FEW_ROWS:
            return stream[rows]
        own = (self._keeper(stream) == self.rank)[rows]
        return self.all_reduce(stream[rows].where(own.unsqueeze(1), torch.zeros(())))

    def _keeper(self, stream: Tensor) -> Tensor:
        """The rank that keeps each row."""
        return torch.arange(stream.shape[0]) // 2 % self.size

    def all_gather(self, x: Tensor) -> Tensor:
        return torch.cat(self._exchange(x.clone()), dim=-1)

    def least(self, values: Sequence[int]) -> list[int]:
        return [min(column) for column in zip(*self._exchange(list(values)), strict=True)]

    def abort(self) -> None:
        self._group.barrier.abort()

    def close(self) -> None:
        return


def run_ranks(size: int, body: Callable[[ThreadCommunicator], Result]) -> list[Result]:
    """`body` on every rank at once; results in rank order."""
    group = ThreadGroup(size)

    def run(rank: int) -> Result:
        try:
            return body(ThreadCommunicator(group, rank))
        except BaseException:
            group.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(run, rank) for rank in range(size)]
    failures = [error for future in futures if (error := future.exception()) is not None]
    for error in failures:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    return [future.result() for future in futures]
