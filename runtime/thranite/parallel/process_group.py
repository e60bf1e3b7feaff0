"""A `Communicator` over torch's process groups: NCCL between GPUs (captured in graphs as it is), gloo between CPUs.

Between GPUs that reach each other's memory, sums of up to some MiB go through that instead of NCCL.

The group is our own object, not torch's default one, so an LLM leaves its process free to use that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import AllgatherOptions, FileStore

from thranite.parallel.environment import set_rank_environment

if TYPE_CHECKING:
    from thranite.parallel.peer_pieces import PeerPieces
    from thranite.parallel.peer_sums import PeerSums

# Ranks wait for each other while they join and while graphs are captured at different speeds. While serving, ranks that
# do not come are found out and killed long before.
TIMEOUT = timedelta(minutes=10)


class GroupCommunicator:
    """One rank of a process group. `backend`: torch's, whose own class it does not export."""

    def __init__(self, backend: Any, device: torch.device) -> None:
        self.rank, self.size = backend.rank(), backend.size()
        self.peers: PeerSums | None = None
        self.pieces: PeerPieces | None = None  # of memory, once there: what `peers` sum through, or are tried with
        self._aborted = False
        self._backend, self._device = backend, device
        # On a GPU the collective then runs on the current stream and not on one of its own.
        self._sum = _reduce_options(dist.ReduceOp.SUM)
        self._least = _reduce_options(dist.ReduceOp.MIN)
        self._gather = AllgatherOptions()
        self._gather.asyncOp = False

    def all_reduce(self, x: Tensor) -> Tensor:
        if self.peers is None or not self.peers.all_reduce(x):
            self.library_all_reduce(x)
        return x

    def library_all_reduce(self, x: Tensor) -> Tensor:
        """NCCL's or gloo's own, in place."""
        _wait(self._backend.allreduce([x], self._sum))
        return x

    def all_reduce_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor | None:
        return None if self.peers is None else self.peers.all_reduce_norm(x, residual, weight, eps)

    def whole_rows(self, stream: Tensor, rows: Tensor) -> Tensor:
        own = None if self.peers is None else self.peers.own_part(stream, rows)
        return stream[rows] if own is None else self.all_reduce(own)

    def all_gather(self, x: Tensor) -> Tensor:
        rows, columns = x.shape
        gathered = x.new_empty(self.size * rows, columns)
        _wait(self._backend._allgather_base(gathered, x, self._gather))
        return gathered.view(self.size, rows, columns).transpose(0, 1).reshape(rows, -1)

    def least(self, values: Sequence[int]) -> list[int]:
        numbers = torch.tensor(list(values), dtype=torch.int64, device=self._device)
        _wait(self._backend.allreduce([numbers], self._least))
        agreed: list[int] = numbers.tolist()
        if self._aborted:
            raise RuntimeError("the ranks' agreement was broken off")
        return agreed

    def abort(self) -> None:
        """Gloo needs no word: its waits end when the others' connections close."""
        self._aborted = True
        if self.pieces is not None:
            self.pieces.stop()
        if self._device.type == "cuda":
            self._backend.abort()

    def close(self) -> None:
        """NCCL's way to leave in order waits for the others, which may have gone before."""
        if self._device.type == "cuda":
            if not self._aborted:  # one under way may never return
                with suppress(RuntimeError):  # torch's, after an error of the device
                    self._backend.abort()
            if self.pieces is not None:
                self.pieces.close()
        else:
            self._backend.shutdown()


def join(
    rank: int,
    size: int,
    store_path: str,
    device: torch.device,
    *,
    peer_memory: bool = True,
    met: Callable[[GroupCommunicator], None] | None = None,
) -> GroupCommunicator:
    """Meet the other ranks through a file that all can open; waits until all have come. `peer_memory`: between GPUs,
    share some. `met` gets the communicator as soon as it can be aborted: proving that memory takes as long as compiling
    the kernels does."""
    set_rank_environment()
    store = FileStore(store_path, size)
    backend: Any
    if device.type == "cuda":
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = TIMEOUT
        backend = dist.ProcessGroupNCCL(store, rank, size, options)
        backend.eager_connect_single_device(device)
    else:
        backend = dist.ProcessGroupGloo(store, rank, size, TIMEOUT)
    communicator = GroupCommunicator(backend, device)
    if met is not None:
        met(communicator)
    communicator.least([0])
    if peer_memory and device.type == "cuda":
        communicator.peers = _join_peers(communicator, store, device)
    return communicator


def _join_peers(communicator: GroupCommunicator, store: FileStore, device: torch.device) -> PeerSums | None:
    """None where the GPUs cannot reach each other's memory; the log says why."""
    from thranite.parallel.peer_pieces import PeerPieces
    from thranite.parallel.peer_sums import prove

    pieces = PeerPieces(communicator.rank, communicator.size, device, store, communicator.least)
    communicator.pieces = pieces
    return None if pieces.memory is None else prove(pieces, pieces.memory, communicator.least)


def _wait(work: Any) -> None:
    """For gloo; a collective on the current stream may return no work to wait for."""
    if work is not None:
        work.wait()


def _reduce_options(operation: dist.ReduceOp.RedOpType) -> dist.AllreduceOptions:
    options = dist.AllreduceOptions()
    options.reduceOp = operation
    options.asyncOp = False
    return options
