"""The memory that the GPUs of one machine share: a piece of each rank's, mapped by all. CUDA IPC, no NVLink multicast.

Handles go through the store by which the ranks met. Every rank does the same calls, whatever fails on it, and all get
memory or none does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

import torch

from thranite.parallel.cuda_driver import CudaDriver, CudaDriverError
from thranite_kernels.peer_memory import PROGRAMS, PeerMemory, piece_bytes

logger = logging.getLogger(__name__)

FAILED = "failed"

Least = Callable[[Sequence[int]], list[int]]


class Store(Protocol):
    """torch's, through which ranks tell each other strings."""

    def set(self, key: str, value: str, /) -> None: ...

    def get(self, key: str, /) -> bytes: ...


class PeerPieces:
    """This rank's piece and its view of all. `memory` is None where the GPUs cannot reach each other."""

    def __init__(self, rank: int, size: int, device: torch.device, store: Store, least: Least) -> None:
        self.memory: PeerMemory | None = None
        self._driver: CudaDriver | None = None
        self._own: int | None = None
        self._opened: list[int] = []
        self._stop = torch.zeros(0, dtype=torch.int32)
        store.set(f"peer-piece/{rank}", self._offer(rank, size, device))
        offers = [store.get(f"peer-piece/{other}").decode() for other in range(size)]
        pieces = self._open(rank, offers)
        [programs] = least([min(PROGRAMS, _multiprocessors(device)) if pieces else 0])
        if pieces and programs:
            self._stop = torch.zeros(1, dtype=torch.int32, pin_memory=True)
            self.memory = PeerMemory.of(rank, pieces, self._stop.data_ptr(), device, programs)
        else:
            self.close()

    def stop(self) -> None:
        """No kernel waits for peers any more. Callable from any thread, whatever the device is doing."""
        self._stop.fill_(1)

    def close(self) -> None:
        """Let all memory go. Best effort: after an error the context may refuse everything."""
        self.stop()
        self.memory = None
        if self._driver is not None:
            for address in self._opened:
                with suppress(CudaDriverError):
                    self._driver.close(address)
            if self._own is not None:
                with suppress(CudaDriverError):
                    self._driver.free(self._own)
        self._own, self._opened = None, []

    def _offer(self, rank: int, size: int, device: torch.device) -> str:
        """Allocate; what the others map this rank's piece by."""
        try:
            self._driver = CudaDriver()
            index = device.index if device.index is not None else torch.cuda.current_device()
            for peer in (peer for peer in range(size) if peer != rank):
                if not self._driver.can_access(index, peer):
                    raise CudaDriverError(f"GPU {index} cannot reach GPU {peer}'s memory")
            self._own = self._driver.allocate(piece_bytes(size))
            return self._driver.handle(self._own).hex()
        except CudaDriverError as error:
            logger.warning("sums go through NCCL alone: rank %d shares no memory: %s", rank, error)
            return FAILED

    def _open(self, rank: int, offers: Sequence[str]) -> list[int]:
        """Each rank's piece as this process sees it; nothing if one offered none or cannot be mapped."""
        if FAILED in offers or self._driver is None or self._own is None:
            return []
        pieces = []
        try:
            for other, offer in enumerate(offers):
                if other != rank:
                    self._opened.append(self._driver.open(bytes.fromhex(offer)))
                pieces.append(self._own if other == rank else self._opened[-1])
        except CudaDriverError as error:
            logger.warning("sums go through NCCL alone: rank %d maps no memory: %s", rank, error)
            return []
        return pieces


def _multiprocessors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
