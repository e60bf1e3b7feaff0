"""Rotary position embedding on pairs (i, i + rotary_dim / 2) of each head."""

from __future__ import annotations

import torch
from torch import Tensor

from thranite.models.spec import RopeSpec


def rotary_table(rope: RopeSpec, positions: Tensor, dtype: torch.dtype) -> Tensor:
    """Cosines and sines of `positions` [T] → [T, 2, rotary_dim / 2], in fp32 (float64 for float64 models).

    With `torch.arange(length)` this is a whole cache, row p for position p.
    """
    kept = torch.promote_types(dtype, torch.float32)
    inv_freq = torch.tensor(rope.inv_freq, dtype=kept, device=positions.device)
    angles = positions.to(kept)[:, None] * inv_freq
    table = torch.stack((angles.cos(), angles.sin()), dim=1)
    return table if rope.attention_factor == 1.0 else table.mul_(rope.attention_factor)


def signed_tables(table: Tensor) -> tuple[Tensor, Tensor]:
    """(cos, cos) and (-sin, sin), [T, 1, rotary_dim] each: the factors of x and of its halves swapped."""
    cos, sin = table.unbind(1)
    return torch.cat((cos, cos), dim=-1)[:, None], torch.cat((-sin, sin), dim=-1)[:, None]


def rotate_(heads: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotate the first rotary_dim values of `heads` [T, n, head_dim] in place. Tables as `signed_tables` makes them."""
    rotated = heads[..., : cos.shape[-1]]
    half = cos.shape[-1] // 2
    swapped = torch.cat((rotated[..., half:], rotated[..., :half]), dim=-1)
    if rotated.dtype == cos.dtype:
        rotated.mul_(cos).addcmul_(swapped, sin)
    else:
        rotated.copy_((rotated * cos).addcmul_(swapped.to(cos.dtype), sin))
