"""What a model asks of the other tensor-parallel ranks. Every rank makes the same calls in the same order.

No torch here: what starts and watches ranks runs without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Communicator(Protocol):
    """The ranks that hold the parts of one model. For one thread and, on a GPU, its current stream."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over all ranks, the same bits on each. `x`, contiguous, may be overwritten."""
        ...

    def all_reduce_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor | None:
        """The sum of all ranks' `x` [T, N], added to `residual` [T, N] in place, RMS-normalised and times `weight` [N],
        in one kernel. None, and nothing done, where there is none. `x` may be overwritten.

        A rank may keep `residual` only in the rows that it adds, the same for calls of one shape: of a forward pass,
        all such sums or none go this way, and what reads the stream afterwards asks for `whole_rows`."""
        ...

    def whole_rows(self, stream: Tensor, rows: Tensor) -> Tensor:
        """Rows [S] (int64, in any order) of `stream` [T, N], the residual of calls of `all_reduce_norm` or of none:
        [S, N], whole on every rank."""
        ...

    def all_gather(self, x: Tensor) -> Tensor:
        """[R, n] of each rank → [R, size * n], rank 0's columns first."""
        ...

    def least(self, values: Sequence[int]) -> list[int]:
        """Of each value the least on any rank: what all can agree on. Waits for the device."""
        ...

    def abort(self) -> None:
        """End what waits for ranks that are gone; results since then are void. Callable from any thread."""

    def close(self) -> None:
        """Leave. No call follows."""


class Alone:
    """A model that is not split."""

    rank = 0
    size = 1

    def all_reduce(self, x: Tensor) -> Tensor:
        return x

    def all_reduce_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor | None:
        return None

    def whole_rows(self, stream: Tensor, rows: Tensor) -> Tensor:
        return stream[rows]

    def all_gather(self, x: Tensor) -> Tensor:
        return x

    def least(self, values: Sequence[int]) -> list[int]:
        return list(values)

    def abort(self) -> None:
        return

    def close(self) -> None:
        return


ALONE = Alone()
