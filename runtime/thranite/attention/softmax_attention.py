"""Attention of dense queries over dense keys and values."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def softmax_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float | None
) -> Tensor:
    """q [B, H, Q, D], k and v [B, H, K, D], additive mask that broadcasts to [B, H, Q, K] → [B, H, Q, D]."""
    if softcap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    scores = torch.matmul(q, k.transpose(-1, -2)).mul_(scale / softcap).tanh_().mul_(softcap)
    if mask is not None:
        scores = scores.add_(mask)
    accurate = torch.promote_types(q.dtype, torch.float32)
    return torch.matmul(torch.softmax(scores, dim=-1, dtype=accurate).to(q.dtype), v)
