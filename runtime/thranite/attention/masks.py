"""Additive masks: 0 where a key is seen, -inf where not."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def range_mask(
    ranges: Sequence[tuple[int, int]], width: int, dtype: torch.dtype, device: torch.device
) -> Tensor | None:
    """[R, 1, 1, width]: row r sees keys `ranges[r]`. None if every row sees all."""
    if all(seen == (0, width) for seen in ranges):
        return None
    bounds = torch.tensor(ranges, device=device)
    keys = torch.arange(width, device=device)
    hidden = (keys < bounds[:, :1]) | (keys >= bounds[:, 1:])
    return torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, -math.inf)[:, None, None]


def band_mask(queries: int, reach: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[queries, reach + queries]: query i sees keys up to its own, `reach + i`, of the last `window`.

    Columns `reach - d` onwards are the mask for queries that have d keys before them.
    """
    own = torch.arange(queries, device=device)[:, None] + reach
    keys = torch.arange(reach + queries, device=device)
    hidden = keys > own
    if window is not None:
        hidden |= keys <= own - window
    return torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, -math.inf)
