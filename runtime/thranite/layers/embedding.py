"""Token embedding, whose table is also the head of models with tied embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thranite.layers.communicator import ALONE, Communicator
from thranite.layers.module import Module
from thranite.layers.own_memory import own_empty
from thranite.models.partition import Rank, vocabulary_rows


class Embedding(Module):
    """Rows of a [vocab, hidden] table, times `scale` rounded to the table's type as the families' own code does.

    Split by rows: a rank yields zeros for tokens that are not its own, and the sum over the ranks is exact. Rows of
    padding at the end are zero.
    """

    def __init__(
        self,
        vocab: int,
        hidden: int,
        scale: float,
        *,
        dtype: torch.dtype,
        device: torch.device,
        communicator: Communicator = ALONE,
    ) -> None:
        super().__init__()
        self.communicator = communicator
        self.rows = Rank(communicator.rank, communicator.size).vocabulary(vocab)
        held = vocabulary_rows(vocab, communicator.size)
        self.weight = nn.Parameter(own_empty(held, hidden, dtype=dtype, device=device), requires_grad=False)
        self.scale = torch.tensor(scale, dtype=dtype).item()

    def load(self, source: Tensor) -> None:
        """`source`: this rank's rows of the checkpoint's table."""
        self.weight[: len(source)].copy_(source)
        self.weight[len(source) :].zero_()

    def forward(self, input_ids: Tensor) -> Tensor:
        if self.communicator.size == 1:
            rows = F.embedding(input_ids, self.weight)
        else:
            local = input_ids - self.rows.first
            foreign = (local < 0) | (local >= self.rows.size)
            rows = F.embedding(local.masked_fill_(foreign, 0), self.weight).masked_fill_(foreign[:, None], 0.0)
            rows = self.communicator.all_reduce(rows)
        return rows if self.scale == 1.0 else rows.mul_(self.scale)
