"""Attention of few queries a row (1 to 8) over a paged cache, cut into equal shares of keys on the device.

`DecodePlan.plan` runs once a step (and window): it reads the lengths on the device and lists work items, the longest
first, so that one captured graph serves every length. `paged_decode` runs once a layer over those items. The grid
depends on the number of rows alone. Rows cut into several splits leave partial results in fp32, and the last split to
arrive combines them in a fixed order: results do not depend on timing, nor on padding rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ._paged_decode import decode_plan_kernel, paged_decode_kernel
from .attention import check_attention, padded_head, score_scales
from .hopper_decode import decode_by_wgmma, hopper_decode_launch
from .hopper_pages import PAGE, page_map
from .launch import Launch, cdiv, next_power_of_2, require
from .target import DecodeConfig, Target, decode_config, overlaps, target_of

RECORD = 8
AHEAD_ROWS = 16
"""Largest batch whose keys are asked of L2 ahead. More rows have enough on its way, and asking costs them time: 19 and
25 µs a layer of llama-8b without and with, at 64 rows of some 200 keys on an H200."""

COMBINED = 8192
"""Numbers of partial results that a program combines at once, 64 a thread of 4 warps. One row of 32,768 keys has 16
splits of 4 x 128 on an H200: 5.440 ms a step of llama-8b against 5.508 in two goes (two machines, 0.8 % apart at 1,024
keys)."""

MAX_BLOCK_M = 64
"""Query rows of one program; larger groups times queries take more programs, which share keys through L2."""


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """Work items of one step and the scratch that layers share; buffers are allocated once, `plan` refills `items`."""

    items: torch.Tensor  # int32 [rows + shares, RECORD]
    partial: torch.Tensor  # fp32 [2 shares, KVH · blocks, BLOCK_R, D], normalised results of splits
    lse: torch.Tensor  # fp32 [2 shares, KVH · blocks, BLOCK_R], their log-sum-exp in log2 units
    count: torch.Tensor  # int32 [2 shares, KVH · blocks], zero between launches
    rows: int
    shares: int
    coarse: int  # shares at least, where pieces are short: `DecodeConfig.long_tiles`
    heads: int
    kv_heads: int
    head_dim: int
    max_q: int
    window: int
    config: DecodeConfig

    @property
    def combined(self) -> int:
        """Splits of a row that are combined at once."""
        return max(COMBINED // (self.partial.shape[2] * padded_head(self.head_dim)), 1)

    @classmethod
    def allocate(
        cls,
        rows: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        *,
        max_q: int = 1,
        window: int = 0,
        itemsize: int = 2,
        device: torch.device | str = "cuda",
        scratch: DecodePlan | None = None,
        target: Target | None = None,
        config: DecodeConfig | None = None,
    ) -> DecodePlan:
        """Buffers for batches of exactly `rows` rows (a captured size); `scratch` of a plan of the same shape is
        shared, since launches of one stream never overlap."""
        device = torch.device(device)
        target = target or target_of(device)
        config = config or decode_config(target, padded_head(head_dim), itemsize)
        require(1 <= max_q <= 8, "paged_decode: 1 to 8 queries a row")
        _, block_r, m_blocks = query_blocks(heads // kv_heads, max_q)
        blocks = kv_heads * m_blocks
        shares, coarse = (max(target.num_sms * ctas // blocks, 1) for ctas in (config.ctas_per_sm, 1))
        items = torch.zeros(rows + shares, RECORD, dtype=torch.int32, device=device)
        if scratch is not None:
            shape = (2 * shares, blocks, block_r, head_dim)
            require(scratch.partial.shape == shape, f"paged_decode: scratch must be {shape}")
            partial, lse, count = scratch.partial, scratch.lse, scratch.count
        else:
            partial = torch.empty(2 * shares, blocks, block_r, head_dim, dtype=torch.float32, device=device)
            lse = torch.empty(2 * shares, blocks, block_r, dtype=torch.float32, device=device)
            count = torch.zeros(2 * shares, blocks, dtype=torch.int32, device=device)
        return cls(items, partial, lse, count, rows, shares, coarse, heads, kv_heads, head_dim, max_q, window, config)

    def plan(self, slots: torch.Tensor, context_lens: torch.Tensor, cu_q: torch.Tensor | None = None) -> None:
        """List this step's work; `cu_q` is needed exactly when `max_q` > 1 (else row r's query is token r)."""
        self.plan_launch(slots, context_lens, cu_q).run()

    def plan_launch(self, slots: torch.Tensor, context_lens: torch.Tensor, cu_q: torch.Tensor | None) -> Launch:
        """The launch behind `plan`: one program a row, one more for unused items."""
        require(slots.shape[0] == self.rows, f"paged_decode: planned for {self.rows} rows, not {slots.shape[0]}")
        require((cu_q is None) == (self.max_q == 1), "paged_decode: cu_q goes with max_q > 1")
        return Launch(
            decode_plan_kernel,
            (self.rows + 1,),
            {
                "slots_ptr": slots,
                "context_ptr": context_lens,
                "cu_q_ptr": cu_q,
                "item_ptr": self.items,
                "rows": self.rows,
                "items": self.items.shape[0],
                "shares": self.shares,
                "window": self.window,
                "min_tiles": self.config.min_tiles,
                "whole_tiles": self.config.whole_tiles,
                "coarse": self.coarse,
                "long_tiles": self.config.long_tiles,
            },
            {
                "TILE": self.config.tile,
                "WINDOW": self.window > 0,
                "RAGGED": cu_q is not None,
                "BLOCK_R": 1024,
                "BLOCK_I": 64,
            },
        )


def query_blocks(group: int, max_q: int) -> tuple[int, int, int]:
    """`(BLOCK_M, BLOCK_R, M_BLOCKS)`: rows of a program's tile (16 at least, for the tensor cores), rows of them whose
    partial results are stored, programs for one kv head."""
    rows = group * max_q
    block_m = min(max(next_power_of_2(rows), 16), MAX_BLOCK_M)
    return block_m, min(next_power_of_2(rows), block_m), cdiv(rows, block_m)


def paged_decode(
    q: torch.Tensor,
    kv: torch.Tensor,
    block_table: torch.Tensor,
    plan: DecodePlan,
    *,
    scale: float | None = None,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    descriptor: Any = None,
) -> torch.Tensor:
    """q [T, H, D]; tokens of padded rows, and those after the rows', are left as they are. Returns [T, H, D] in q's
    dtype. `descriptor`: the cache's `decode_descriptor`, which is made anew where it is None and needed."""
    out = torch.empty_like(q) if out is None else out
    paged_decode_launch(
        q, kv, block_table, plan, scale=scale, softcap=softcap, sinks=sinks, out=out, descriptor=descriptor
    ).run()
    return out


def decode_descriptor(q: torch.Tensor, kv: torch.Tensor, plan: DecodePlan) -> Any:
    """Tensor map of one layer's cache, or None where its kernel needs none."""
    return page_map(kv) if decode_by_wgmma(q, kv, plan.max_q) else None


def paged_decode_launch(
    q: torch.Tensor,
    kv: torch.Tensor,
    block_table: torch.Tensor,
    plan: DecodePlan,
    *,
    scale: float | None,
    softcap: float,
    sinks: torch.Tensor | None,
    out: torch.Tensor,
    descriptor: Any = None,
) -> Launch:
    """The launch behind `paged_decode`: (items · query blocks · kv heads) programs, heads fastest."""
    check_attention(q, kv, block_table, out)
    _, heads, head_dim = q.shape
    require(
        (heads, kv.shape[2], head_dim) == (plan.heads, plan.kv_heads, plan.head_dim), "paged_decode: not the plan's q"
    )
    score_scale, cap_scale = score_scales(head_dim**-0.5 if scale is None else scale, softcap)
    plain = not (softcap or plan.window) and sinks is None
    if plain and plan.config.tile % PAGE == 0 and decode_by_wgmma(q, kv, plan.max_q):
        return hopper_decode_launch(q, kv, block_table, plan, score_scale=score_scale, out=out, descriptor=descriptor)
    return _portable_launch(
        q, kv, block_table, plan, score_scale=score_scale, cap_scale=cap_scale, sinks=sinks, out=out
    )


def _portable_launch(
    q: torch.Tensor,
    kv: torch.Tensor,
    block_table: torch.Tensor,
    plan: DecodePlan,
    *,
    score_scale: float,
    cap_scale: float,
    sinks: torch.Tensor | None,
    out: torch.Tensor,
) -> Launch:
    """For checked arguments. `cap_scale`: 0 without a softcap."""
    kv_heads, block_size, head_dim = kv.shape[2:]
    block_m, block_r, m_blocks = query_blocks(plan.heads // kv_heads, plan.max_q)
    block_d = padded_head(head_dim)
    return Launch(
        paged_decode_kernel,
        (plan.items.shape[0] * kv_heads * m_blocks,),
        {
            "q_ptr": q,
            "stride_q": q.stride(0),
            "kv_ptr": kv,
            "stride_page": kv.stride(0),
            "table_ptr": block_table,
            "stride_table": block_table.stride(0),
            "sink_ptr": sinks,
            "out_ptr": out,
            "stride_out": out.stride(0),
            "item_ptr": plan.items,
            "part_ptr": plan.partial,
            "lse_ptr": plan.lse,
            "count_ptr": plan.count,
            "window": plan.window,
            "score_scale": score_scale,
            "cap_scale": cap_scale,
            "ahead": plan.config.ahead if plan.rows <= AHEAD_ROWS else 0,
        },
        {
            "GROUP": plan.heads // kv_heads,
            "KV_HEADS": kv_heads,
            "MAX_Q": plan.max_q,
            "HEAD_DIM": head_dim,
            "BLOCK_D": block_d,
            "BLOCK_M": block_m,
            "BLOCK_R": block_r,
            "BLOCK_S": plan.combined,
            "BLOCK_SIZE": block_size,
            "TILE": plan.config.tile,
            "SOFTCAP": cap_scale > 0.0,
            "WINDOW": plan.window > 0,
            "SINKS": sinks is not None,
            "PDL": overlaps(q),
        },
        num_warps=plan.config.num_warps,
        num_stages=plan.config.num_stages,
    )
