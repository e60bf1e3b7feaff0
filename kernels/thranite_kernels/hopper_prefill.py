"""`paged_prefill` on Hopper: copies, products and softmax beside each other, by warps with roles.

16-bit caches in pages of 64 with heads of 64 or 128, groups that fill a power of two but for an eighth at most (7 of 8,
14 and 15 of 16), no window, softcap or sinks; all else is `_paged_prefill`'s, and so is the work list. Measured on an
H200 in docs/performance.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .hopper_pages import PAGE, suits_wgmma
from .launch import Launch, next_power_of_2, require, swizzled_map
from .target import PrefillConfig, target_of

if TYPE_CHECKING:
    from .paged_prefill import PrefillPlan

GROUP_ROWS = 64
"""Query rows of a group of warps: what one wgmma takes."""
GROUPS = 2
RING = 160 << 10
"""Bytes of a program's keys and values on their way: five pages of heads of 128."""


def prefill_by_wgmma(kv: torch.Tensor, heads: int, dtype: torch.dtype) -> bool:
    """Whether this kernel can, for queries of `dtype`, as far as types and shapes go. `kv`: one layer's cache,
    [pages, 2, KVH, block_size, D]."""
    group = heads // kv.shape[2]
    box = next_power_of_2(group)  # rows of a token; those that are no heads are computed for nothing
    return 8 * (box - group) <= box <= GROUP_ROWS and kv.dtype == dtype and suits_wgmma(kv)


def hopper_config(head_dim: int, itemsize: int) -> PrefillConfig:
    """Its tiles."""
    return PrefillConfig(GROUPS * GROUP_ROWS, PAGE, 4, RING // (2 * PAGE * head_dim * itemsize), wgmma=True)


def hopper_prefill_launch(
    q: torch.Tensor,
    kv: torch.Tensor,
    block_table: torch.Tensor,
    plan: PrefillPlan,
    *,
    score_scale: float,
    out: torch.Tensor,
    descriptor: Any,
) -> Launch:
    """The launch behind `paged_prefill`, for checked arguments and the cache that the plan is for: a program for each
    multiprocessor. `descriptor`: the cache's `page_map`."""
    from ._hopper_prefill import hopper_prefill_kernel  # Gluon takes its time to load, and few need it

    require(q.dtype == kv.dtype, "paged_prefill: wgmma takes q of the cache's type")
    require((q.stride(0) | int(q.storage_offset())) % 8 == 0, "paged_prefill: tensor maps take rows of q at 16 bytes")
    require(score_scale > 0.0, "paged_prefill: the scale must be positive")
    _, heads, head_dim = q.shape
    kv_heads = kv.shape[2]
    group = heads // kv_heads
    box = next_power_of_2(group)
    require(plan.block_q * box == GROUPS * GROUP_ROWS, "paged_prefill: the plan is for other numbers of heads")
    return Launch(
        hopper_prefill_kernel,
        (target_of(q.device).num_sms,),
        {
            "q_desc": swizzled_map(q, [GROUP_ROWS // box, box, head_dim]),
            "kv_desc": descriptor,
            "table_ptr": block_table,
            "stride_table": block_table.stride(0),
            "out_ptr": out,
            "stride_out": out.stride(0),
            "item_ptr": plan.items,
            "items": plan.items.shape[0] - 1,
            "score_scale": score_scale,
        },
        {
            "GROUP": group,
            "BOX": box,
            "KV_HEADS": kv_heads,
            "HEAD_DIM": head_dim,
            "STAGES": plan.config.num_stages,
        },
        num_warps=plan.config.num_warps,
    )
