"""`paged_decode` on Hopper: pages by tensor map, scores and results by wgmma, in about the power that reading takes.

16-bit caches in pages of 64 with heads of 64 or 128, up to 16 query rows a kv head, no window, softcap or sinks; all
else is `_paged_decode`'s, and so are the work lists and the partial results. A program takes one page of one kv head at
a time: scoresᵀ = K qᵀ, whose 64 rows are keys, and outᵀ += Vᵀ weightsᵀ, whose rows are dimensions. So keys and values
are the operand that wgmma reads from shared memory in rows of 64, and the few query rows of a group the one that may be
as narrow as 8. Measured on an H200 in docs/performance.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .hopper_pages import page_map, suits_wgmma
from .launch import Launch, next_power_of_2

if TYPE_CHECKING:
    from .paged_decode import DecodePlan

MAX_QUERY_ROWS = 16

FEW_ROWS = 48
"""Batches of up to so many leave multiprocessors with fewer than three programs: two with a deep ring each read faster.
llama-8b's layer on an H200, two and three programs, microseconds: 32 rows of 400 to 800 keys 22.4, 27.9; 48 rows 30.0,
32.8; 64 rows of 128 to 384 22.6, 20.3; 128 rows of 200 to 900 72.9, 70.7."""
DEEP_RING, RING = 96 << 10, 64 << 10  # bytes of a program's keys and values on their way


def decode_by_wgmma(q: torch.Tensor, kv: torch.Tensor, max_q: int) -> bool:
    """Whether this kernel can, as far as types and shapes go. `kv`: [pages, 2, KVH, block_size, D]."""
    query_rows = q.shape[1] // kv.shape[2] * max_q
    return query_rows <= MAX_QUERY_ROWS and kv.dtype == q.dtype and suits_wgmma(kv)


def hopper_decode_launch(
    q: torch.Tensor,
    kv: torch.Tensor,
    block_table: torch.Tensor,
    plan: DecodePlan,
    *,
    score_scale: float,
    out: torch.Tensor,
    descriptor: Any,
) -> Launch:
    """The launch behind `paged_decode`, for checked arguments: (items · kv heads) programs, heads fastest.

    `descriptor`: the cache's `page_map`, or None."""
    from ._hopper_decode import hopper_decode_kernel  # Gluon takes its time to load, and few need it

    kv_heads, block_size, head_dim = kv.shape[2:]
    query_rows = plan.heads // kv_heads * plan.max_q
    ring = DEEP_RING if plan.rows <= FEW_ROWS else RING
    return Launch(
        hopper_decode_kernel,
        (plan.items.shape[0] * kv_heads,),
        {
            "q_ptr": q,
            "stride_q": q.stride(0),
            "kv_desc": descriptor or page_map(kv),
            "table_ptr": block_table,
            "stride_table": block_table.stride(0),
            "out_ptr": out,
            "stride_out": out.stride(0),
            "item_ptr": plan.items,
            "part_ptr": plan.partial,
            "lse_ptr": plan.lse,
            "count_ptr": plan.count,
            "score_scale": score_scale,
        },
        {
            "GROUP": plan.heads // kv_heads,
            "KV_HEADS": kv_heads,
            "MAX_Q": plan.max_q,
            "HEAD_DIM": head_dim,
            "BLOCK_M": max(next_power_of_2(query_rows), 8),
            "BLOCK_R": plan.partial.shape[2],
            "BLOCK_S": plan.combined,
            "STAGES": ring // (2 * block_size * head_dim * kv.itemsize),
            "PDL": True,
        },
    )
