"""A rank's place among the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thranite.layers.communicator import ALONE, Communicator

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class RankPlace:
    """`store`: the file through which the ranks meet. `joined`: called with the communicator once they have."""

    rank: int = 0
    size: int = 1
    store: str = ""
    joined: Callable[[Communicator], None] | None = None

    def join(self, device: torch.device) -> Communicator:
        """Waits for all ranks."""
        if self.size == 1:
            return ALONE
        from thranite.parallel.process_group import join

        communicator = join(self.rank, self.size, self.store, device)
        if self.joined is not None:
            self.joined(communicator)
        return communicator
