"""Attention of many queries a row over a paged cache: prompts, chunks of prompts, and rows of any mix of lengths.

`PrefillPlan.plan` runs once a step and cuts every row's queries into blocks; `paged_prefill` runs once a layer. The
queries of one block share the keys of one kv head: tile rows are (token, head of the group) pairs. Rows with few
queries and long contexts belong to `paged_decode`, which splits their keys; a mixed batch names its decode rows first,
and each operation takes its part of `slots`, `cu_q` and `context_lens` (the offsets in `cu_q` stay absolute).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from ._paged_prefill import paged_prefill_kernel, prefill_plan_kernel
from .attention import check_attention, padded_head, score_scales
from .hopper_pages import page_map, suits_wgmma
from .hopper_prefill import hopper_config, hopper_prefill_launch, prefill_by_wgmma
from .launch import Launch, cdiv, next_power_of_2, require, tensor_map
from .target import PrefillConfig, prefill_config, target_of

RECORD = 8


@dataclass(frozen=True, slots=True)
class PrefillPlan:
    """Work items of one step: blocks of queries."""

    items: torch.Tensor  # int32 [cdiv(tokens, block_q) + rows + 1, RECORD]; the last is never an item
    rows: int
    block_q: int
    config: PrefillConfig

    @classmethod
    def allocate(
        cls, rows: int, tokens: int, heads: int, kv_heads: int, *, config: PrefillConfig, device: torch.device | str
    ) -> PrefillPlan:
        """A plan for `rows` rows of `tokens` query tokens in all. `config`: the cache's `plan_config`, or
        `prefill_config`, whose kernel takes any attention."""
        group = heads // kv_heads
        block_q = max(config.block_m // (next_power_of_2(group) if config.wgmma else group), 1)
        items = torch.empty(cdiv(tokens, block_q) + rows + 1, RECORD, dtype=torch.int32, device=device)
        return cls(items, rows, block_q, config)

    def plan(self, slots: torch.Tensor, context_lens: torch.Tensor, cu_q: torch.Tensor) -> None:
        """List this step's work."""
        self.plan_launch(slots, context_lens, cu_q).run()

    def plan_launch(self, slots: torch.Tensor, context_lens: torch.Tensor, cu_q: torch.Tensor) -> Launch:
        """The launch behind `plan`: one program a row, one more for unused items."""
        require(slots.shape[0] == self.rows, f"paged_prefill: planned for {self.rows} rows, not {slots.shape[0]}")
        return Launch(
            prefill_plan_kernel,
            (self.rows + 1,),
            {
                "slots_ptr": slots,
                "context_ptr": context_lens,
                "cu_q_ptr": cu_q,
                "item_ptr": self.items,
                "rows": self.rows,
                "items": self.items.shape[0],
            },
            {"BLOCK_Q": self.block_q, "BLOCK_R": 1024, "BLOCK_I": 64},
        )


def paged_prefill(
    q: torch.Tensor,
    kv: torch.Tensor,
    block_table: torch.Tensor,
    plan: PrefillPlan,
    *,
    scale: float | None = None,
    window: int = 0,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    descriptor: Any = None,
) -> torch.Tensor:
    """q [T, H, D]; tokens that no row of `plan` names are left as they are. Returns [T, H, D] in q's dtype.

    `descriptor` is `kv_descriptor(kv, plan.config)`, made once a layer; it is made anew when missing and needed.
    """
    out = torch.empty_like(q) if out is None else out
    paged_prefill_launch(
        q,
        kv,
        block_table,
        plan,
        scale=scale,
        window=window,
        softcap=softcap,
        sinks=sinks,
        out=out,
        descriptor=descriptor,
    ).run()
    return out


def plan_config(
    kv: torch.Tensor, heads: int, dtype: torch.dtype, *, window: int = 0, softcap: float = 0.0, sinks: bool = False
) -> PrefillConfig:
    """The tiles for such attention by queries of `dtype`. `kv`: one layer's cache, [pages, 2, KVH, block_size, D]."""
    head_dim = kv.shape[4]
    if not (window or softcap or sinks) and prefill_by_wgmma(kv, heads, dtype):
        return hopper_config(head_dim, kv.itemsize)
    return prefill_config(target_of(kv.device), padded_head(head_dim), kv.itemsize)


def uses_tensor_maps(kv: torch.Tensor, config: PrefillConfig) -> bool:
    """Whether unmasked tiles go through tensor-map copies: a tile must lie within a page and fill the padded head."""
    block_size, head_dim = kv.shape[3], kv.shape[4]
    return config.tma and block_size % config.tile == 0 and padded_head(head_dim) == head_dim


def kv_descriptor(kv: torch.Tensor, config: PrefillConfig) -> Any:
    """Tensor map of one layer's cache as [pages, 2·KVH, block_size, D], one tile of one head at a time, or None."""
    if config.wgmma:
        require(suits_wgmma(kv), "paged_prefill: the plan is for another cache (see plan_config)")
        return page_map(kv)
    if not uses_tensor_maps(kv, config):
        return None
    pages, _, kv_heads, block_size, head_dim = kv.shape
    shape = [pages, 2 * kv_heads, block_size, head_dim]
    strides = [kv.stride(0), block_size * head_dim, head_dim, 1]
    return tensor_map(kv, shape, strides, [1, 1, config.tile, head_dim])


def paged_prefill_launch(
    q: torch.Tensor,
    kv: torch.Tensor,
    block_table: torch.Tensor,
    plan: PrefillPlan,
    *,
    scale: float | None,
    window: int,
    softcap: float,
    sinks: torch.Tensor | None,
    out: torch.Tensor,
    descriptor: Any,
) -> Launch:
    """The launch behind `paged_prefill`."""
    check_attention(q, kv, block_table, out)
    _, heads, head_dim = q.shape
    score_scale, cap_scale = score_scales(head_dim**-0.5 if scale is None else scale, softcap)
    descriptor = descriptor or kv_descriptor(kv, plan.config)
    if plan.config.wgmma:
        plain = not (window or softcap) and sinks is None
        require(plain, "paged_prefill: the plan is for attention without window, softcap and sinks (see plan_config)")
        return hopper_prefill_launch(q, kv, block_table, plan, score_scale=score_scale, out=out, descriptor=descriptor)
    constants = _constants(
        heads,
        kv.shape,
        plan.config,
        plan.block_q,
        softcap=softcap > 0.0,
        window=window > 0,
        sinks=sinks is not None,
        tma=descriptor is not None,
    )
    items = plan.items.shape[0]
    return Launch(
        paged_prefill_kernel,
        (items * constants["KV_HEADS"],),
        {
            "q_ptr": q,
            "stride_q": q.stride()[0],
            "kv_ptr": kv,
            "stride_page": kv.stride()[0],
            "kv_desc": descriptor,
            "table_ptr": block_table,
            "stride_table": block_table.stride()[0],
            "sink_ptr": sinks,
            "out_ptr": out,
            "stride_out": out.stride()[0],
            "item_ptr": plan.items,
            "items": items,
            "window": window,
            "score_scale": score_scale,
            "cap_scale": cap_scale,
        },
        constants,
        num_warps=plan.config.num_warps,
        num_stages=plan.config.num_stages,
    )


@lru_cache(maxsize=1024)
def _constants(
    heads: int,
    kv_shape: tuple[int, ...],
    config: PrefillConfig,
    block_q: int,
    *,
    softcap: bool,
    window: bool,
    sinks: bool,
    tma: bool,
) -> Mapping[str, int]:
    _, _, kv_heads, block_size, head_dim = kv_shape
    group = heads // kv_heads
    require(group <= config.block_m, "paged_prefill: more heads in a group than tile rows")
    return {
        "GROUP": group,
        "KV_HEADS": kv_heads,
        "HEAD_DIM": head_dim,
        "BLOCK_D": padded_head(head_dim),
        "BLOCK_M": config.block_m,
        "BLOCK_Q": block_q,
        "BLOCK_SIZE": block_size,
        "TILE": config.tile,
        "SOFTCAP": softcap,
        "WINDOW": window,
        "SINKS": sinks,
        "TMA": tma,
    }
