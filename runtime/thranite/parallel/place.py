"""A rank's place among the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thranite.layers.communicator import ALONE, Communicator

if TYPE_CHECKING:
    import torch


def _nothing(*_: object) -> None:
    return


@dataclass(frozen=True, slots=True)
class RankPlace:
    """`store`: the file through which the ranks meet. Called on the way: `arrived` before they do, `joined` as soon as
    they have."""

    rank: int = 0
    size: int = 1
    store: str = ""
    arrived: Callable[[], None] = _nothing
    joined: Callable[[Communicator], None] = _nothing

    def join(self, device: torch.device, *, peer_memory: bool = True) -> Communicator:
        """Waits for all ranks. `peer_memory`: whether GPUs may sum through each other's memory."""
        if self.size == 1:
            return ALONE
        from thranite.parallel.process_group import join

        self.arrived()
        return join(self.rank, self.size, self.store, device, peer_memory=peer_memory, met=self.joined)
