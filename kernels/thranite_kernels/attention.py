"""What both attention operations share: argument checks, score scaling, the torch reference, declared work.

Layouts. q [T, H, D]; cache of one layer `kv` [pages, 2, KVH, block_size, D], dense within a page, any page stride;
block_table int32 [max_slots, max_blocks]; rows of the batch are named by slots int32 [R] (−1: padding), cu_q int32
[R + 1] and context_lens int32 [R], which count this step's tokens. Query t of a row with n queries and context c stands
at position c − n + t and sees key j if j ≤ position, and j > position − window where a window is set.

    s = q·k·scale    s = cap·tanh(s/cap) with a softcap    out = Σ softmax(s)·v    (a sink is one more logit a head)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch

from .launch import LOG2E, next_power_of_2, require
from .work import Work

HEAD_SIZES = (64, 80, 96, 112, 128, 160, 192, 256)
"""Head sizes the tables name; others up to 256 that are multiples of 16 work by the same padding."""


def check_attention(q: torch.Tensor, kv: torch.Tensor, block_table: torch.Tensor, out: torch.Tensor) -> None:
    """Refuse layouts the kernels would read wrongly."""
    _, heads, head_dim = q.shape
    _check_layouts(heads, head_dim, q.stride(), kv.shape, kv.stride(), block_table.stride(), out.stride())


@lru_cache(maxsize=1024)
def _check_layouts(
    heads: int,
    head_dim: int,
    q_strides: tuple[int, ...],
    kv_shape: tuple[int, ...],
    kv_strides: tuple[int, ...],
    table_strides: tuple[int, ...],
    out_strides: tuple[int, ...],
) -> None:
    require(len(kv_shape) == 5, "attention: kv [pages, 2, KVH, block, D]")
    _, two, kv_heads, block_size, kv_dim = kv_shape
    require(two == 2 and kv_dim == head_dim, "attention: kv [pages, 2, KVH, block, D]")
    require(is_dense_within_pages(kv_shape, kv_strides), "attention: the cache must be dense within a page")
    require(heads % kv_heads == 0, "attention: heads must be a multiple of kv heads")
    require(head_dim <= 256 and head_dim % 16 == 0, "attention: head size must be a multiple of 16 up to 256")
    require(q_strides[1:] == (head_dim, 1), "attention: q heads must be contiguous")
    require(out_strides[1:] == (head_dim, 1), "attention: out heads must be contiguous")
    require(table_strides[1] == 1, "attention: block_table rows must be contiguous")
    require(block_size & (block_size - 1) == 0, "attention: block size must be a power of two")


def is_dense_within_pages(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether nothing lies between the elements of one page of a cache [pages, ...]."""
    expected = 1
    for size, stride in zip(reversed(shape[1:]), reversed(strides[1:]), strict=True):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


def padded_head(head_dim: int) -> int:
    """Head size as the tiles see it."""
    return max(next_power_of_2(head_dim), 16)


def score_scales(scale: float, softcap: float) -> tuple[float, float]:
    """`(score_scale, cap_scale)` of `_paged.shape_scores`, which works in units of log2."""
    return (scale / softcap, softcap * LOG2E) if softcap else (scale * LOG2E, 0.0)


def paged_attention_reference(
    q: torch.Tensor,
    kv: torch.Tensor,
    block_table: torch.Tensor,
    slots: torch.Tensor,
    cu_q: torch.Tensor,
    context_lens: torch.Tensor,
    *,
    scale: float | None = None,
    window: int = 0,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> torch.Tensor:
    """Row by row in `dtype`; rows without context are zero. Returns [T, H, D] in `dtype`."""
    tokens, heads, head_dim = q.shape
    _, _, kv_heads, block_size, _ = kv.shape
    scale = head_dim**-0.5 if scale is None else scale
    out = torch.zeros(tokens, heads, head_dim, dtype=dtype, device=q.device)
    for r in range(slots.shape[0]):
        slot, context = int(slots[r]), int(context_lens[r])
        begin, end = int(cu_q[r]), int(cu_q[r + 1])
        if slot < 0 or context == 0 or begin == end:
            continue
        pages = block_table[slot, : -(-context // block_size)].long()
        keys, values = (
            kv[pages, i].transpose(0, 1).reshape(kv_heads, -1, head_dim)[:, :context].to(dtype) for i in (0, 1)
        )
        queries = q[begin:end].to(dtype).reshape(end - begin, kv_heads, heads // kv_heads, head_dim)
        scores = torch.einsum("tkgd,kjd->kgtj", queries, keys) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        position = torch.arange(context - (end - begin), context, device=q.device)[:, None]
        key = torch.arange(context, device=q.device)[None, :]
        hidden = (key > position) | ((key <= position - window) if window else torch.zeros_like(key, dtype=torch.bool))
        scores = scores.masked_fill(hidden, -math.inf)
        if sinks is not None:
            sink = sinks.to(dtype).reshape(kv_heads, -1, 1, 1).expand(*scores.shape[:3], 1)
            scores = torch.cat([scores, sink], dim=-1)
        weights = scores.softmax(-1)[..., :context]
        out[begin:end] = torch.einsum("kgtj,kjd->tkgd", weights, values).reshape(end - begin, heads, head_dim)
    return out


def visible_pairs(q_lens: Sequence[int], context_lens: Sequence[int], window: int = 0) -> int:
    """Number of (query, key) pairs that softmax sees."""
    pairs = 0
    for n, context in zip(q_lens, context_lens, strict=True):
        for position in range(context - n, context):
            pairs += min(position + 1, window) if window else position + 1
    return pairs


def paged_attention_work(
    q_lens: Sequence[int],
    context_lens: Sequence[int],
    heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    window: int = 0,
    itemsize: int = 2,
) -> Work:
    """Each row's visible keys and values once, q and out once; two products of 2·D operations a visible pair."""
    keys = sum(min(c, window + n - 1) if window else c for n, c in zip(q_lens, context_lens, strict=True))
    pairs = visible_pairs(q_lens, context_lens, window)
    return Work(
        bytes=(2 * keys * kv_heads + 2 * sum(q_lens) * heads) * head_dim * itemsize,
        flops=4 * pairs * heads * head_dim,
    )
