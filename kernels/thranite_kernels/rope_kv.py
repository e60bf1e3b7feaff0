"""Per-head q/k RMSNorm (optional), rotary embedding and the cache write, in one pass over the fused projection.

Reads `qkv` [T, (H + 2·KVH)·D], writes q [T, H, D] and, at `slot_mapping`, k and v into the paged cache
`kv` [pages, 2, KVH, block_size, D] (index 1: 0 = K, 1 = V). Half-split rotary of the first `rotary` dimensions:

    (x1, x2) → (x1·cos − x2·sin, x2·cos + x1·sin)        x1 = x[:rotary/2], x2 = x[rotary/2:rotary]

Everything between load and store is fp32. A negative slot is not stored; padding points at page 0, which nobody reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch

from ._rope_kv import rope_kv_kernel
from .attention import is_dense_within_pages
from .launch import Launch, cdiv, next_power_of_2, require
from .target import overlaps
from .work import Work


def rope_kv(
    qkv: torch.Tensor,
    kv: torch.Tensor,
    slot_mapping: torch.Tensor,
    positions: torch.Tensor,
    cos_sin: torch.Tensor | None,
    *,
    heads: int,
    q_weight: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
    eps: float = 1e-6,
    one_plus: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns q [T, heads, D]; `cos_sin` fp32 [max_pos, rotary] or None for a layer without positions."""
    if out is None:
        out = qkv.new_empty(qkv.shape[0], heads, kv.shape[4])
    rope_kv_launch(
        qkv,
        kv,
        slot_mapping,
        positions,
        cos_sin,
        heads=heads,
        q_weight=q_weight,
        k_weight=k_weight,
        eps=eps,
        one_plus=one_plus,
        out=out,
    ).run()
    return out


def rope_kv_launch(
    qkv: torch.Tensor,
    kv: torch.Tensor,
    slot_mapping: torch.Tensor,
    positions: torch.Tensor,
    cos_sin: torch.Tensor | None,
    *,
    heads: int,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    eps: float,
    one_plus: bool,
    out: torch.Tensor,
) -> Launch:
    """The launch behind `rope_kv`: 8 heads a program; 1 token a program for few tokens, else 4."""
    tokens, width = qkv.shape
    strides_x, strides_q, strides_kv = qkv.stride(), out.stride(), kv.stride()
    require((q_weight is None) == (k_weight is None), "rope_kv: give both norm weights or neither")
    _check_layouts(width, strides_x, kv.shape, strides_kv, strides_q, heads)
    constants = _constants(
        kv.shape,
        None if cos_sin is None else cos_sin.shape[1],
        heads=heads,
        block_t=1 if tokens <= 512 else 4,
        norm=q_weight is not None,
        one_plus=one_plus,
        pdl=overlaps(qkv),
    )
    block_h, block_t = constants["BLOCK_H"], constants["BLOCK_T"]
    blocks = cdiv(heads, block_h) + 2 * cdiv(constants["KV_HEADS"], block_h)
    return Launch(
        rope_kv_kernel,
        (cdiv(tokens, block_t), blocks),
        {
            "qkv_ptr": qkv,
            "stride_x": strides_x[0],
            "q_ptr": out,
            "stride_q": strides_q[0],
            "kv_ptr": kv,
            "stride_page": strides_kv[0],
            "slot_ptr": slot_mapping,
            "position_ptr": positions,
            "table_ptr": cos_sin,
            "stride_table": 0 if cos_sin is None else cos_sin.stride()[0],
            "q_weight_ptr": q_weight,
            "k_weight_ptr": k_weight,
            "tokens": tokens,
            "eps": eps,
        },
        constants,
        num_warps=4 if block_t > 1 else 2,
    )


@lru_cache(maxsize=1024)
def _constants(
    kv_shape: tuple[int, ...], rotary: int | None, *, heads: int, block_t: int, norm: bool, one_plus: bool, pdl: bool
) -> Mapping[str, int]:
    """`rotary`: None for a layer without positions."""
    _, _, kv_heads, block_size, head_dim = kv_shape
    turned = head_dim if rotary is None else rotary
    require(turned % 2 == 0 and turned <= head_dim, "rope_kv: rotary must be even and at most the head size")
    return {
        "HEADS": heads,
        "KV_HEADS": kv_heads,
        "HEAD_DIM": head_dim,
        "ROTARY": turned,
        "BLOCK_SIZE": block_size,
        "BLOCK_T": block_t,
        "BLOCK_H": min(8, next_power_of_2(max(heads, kv_heads))),
        "BLOCK_HALF": next_power_of_2(turned // 2),
        "BLOCK_REST": next_power_of_2(max(head_dim - turned, 1)),
        "BLOCK_D": next_power_of_2(head_dim),
        "NORM": norm,
        "ONE_PLUS": one_plus,
        "ROPE": rotary is not None,
        "PDL": pdl,
    }


@lru_cache(maxsize=1024)
def _check_layouts(
    width: int,
    strides_x: tuple[int, ...],
    kv_shape: tuple[int, ...],
    strides_kv: tuple[int, ...],
    strides_q: tuple[int, ...],
    heads: int,
) -> None:
    """Refuse what the kernel would read wrongly."""
    _, two, kv_heads, _, head_dim = kv_shape
    dense = is_dense_within_pages(kv_shape, strides_kv)
    require(two == 2 and dense, "rope_kv: cache must be [pages, 2, KVH, block, D], dense in a page")
    require(width == (heads + 2 * kv_heads) * head_dim and strides_x[1] == 1, "rope_kv: qkv layout")
    require(strides_q[1:] == (head_dim, 1), "rope_kv: q heads must be contiguous")


def rope_kv_reference(
    qkv: torch.Tensor,
    kv: torch.Tensor,
    slot_mapping: torch.Tensor,
    positions: torch.Tensor,
    cos_sin: torch.Tensor | None,
    *,
    heads: int,
    q_weight: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
    eps: float = 1e-6,
    one_plus: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`(q, updated copy of kv)` in torch, fp32 inside."""
    _, _, kv_heads, block_size, head_dim = kv.shape
    x = qkv.float().unflatten(1, (heads + 2 * kv_heads, head_dim))
    q, k, v = x.split([heads, kv_heads, kv_heads], dim=1)

    def transform(x: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        if weight is not None:
            x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
            x = x * (weight.float() + (1.0 if one_plus else 0.0))
        if cos_sin is None:
            return x
        half = cos_sin.shape[1] // 2
        cos, sin = cos_sin[positions.long()].float()[:, None].split(half, dim=-1)
        x1, x2, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin, rest], dim=-1)

    kv = kv.clone()
    kept = slot_mapping >= 0
    page, offset = slot_mapping[kept] // block_size, slot_mapping[kept] % block_size
    kv[page, 0, :, offset] = transform(k, k_weight)[kept].to(kv.dtype)
    kv[page, 1, :, offset] = v[kept].to(kv.dtype)
    return transform(q, q_weight).to(qkv.dtype), kv


def rope_kv_work(tokens: int, heads: int, kv_heads: int, head_dim: int, itemsize: int = 2) -> Work:
    """The projection read, q, k and v written, one fp32 row of angles a token."""
    width = (heads + 2 * kv_heads) * head_dim
    return Work(bytes=tokens * (2 * width * itemsize + head_dim * 4), flops=6 * tokens * width)
