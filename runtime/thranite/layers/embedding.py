"""Token embedding, and the head that turns hidden states into logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Embedding(nn.Module):
    """Rows of a [vocab, hidden] table, times `scale` rounded to the table's type as the families' own code does."""

    def __init__(self, vocab: int, hidden: int, scale: float, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab, hidden, dtype=dtype, device=device), requires_grad=False)
        self.scale = torch.tensor(scale, dtype=dtype).item()

    def forward(self, input_ids: Tensor) -> Tensor:
        rows = F.embedding(input_ids, self.weight)
        return rows if self.scale == 1.0 else rows.mul_(self.scale)
