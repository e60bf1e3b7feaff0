"""Attention of one query a row over a paged cache, by a fixed number of programs that read equal shares of all keys.

The keys of a batch are cut into steps, (row, kv head, tile of keys) triples in that order, and the steps into one share
for each program, equal to a step (Stream-K: Osama et al., 2023, arXiv 2301.03598). A program walks its share in one
loop, and keys of the next row are on their way while those of this one are used: lengths may differ as they like, no
program starts late and none has more to do. `StreamDecodePlan.plan` finds the borders once a step (and window), on the
device. Rows cut by borders leave partial results, which the last program to arrive combines in a fixed order: results
depend on the rows that have keys and on the number of programs, not on timing nor on padding rows. Where a row is cut
depends on the lengths of the others, and so do its last bits (so do those of `paged_decode`, for rows that it cuts).

No program waits for another: any number may run at once, in any order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ._stream_decode import stream_decode_kernel, stream_plan_kernel
from .attention import check_attention, decode_tensors, padded_head, score_scales
from .launch import Launch, require
from .paged_decode import MAX_BLOCK_M, query_blocks
from .target import STREAM_DECODE_ROWS, StreamDecodeConfig, Target, overlaps, stream_decode_config, target_of

ROW, SHARE = 8, 16
MAX_ROWS = (1 << 15) - 1
MAX_SLOTS = 1 << 16
"""A row of the batch and its slot share 31 bits."""

FITTING_GROUP = 16
"""Heads of a group that one tile of the tensor cores holds; more take more registers than there are for three programs
of a multiprocessor."""


@dataclass(frozen=True, slots=True)
class StreamDecodePlan:
    """Lists of one step and the scratch that layers share; buffers are allocated once, `plan` refills the lists."""

    row_list: torch.Tensor  # int32 [rows, ROW], of those with keys
    shares: torch.Tensor  # int32 [programs, SHARE]
    partial: torch.Tensor  # fp32 [2 · programs, BLOCK_R, D], normalised results of parts of runs
    lse: torch.Tensor  # fp32 [2 · programs, BLOCK_R], their log-sum-exp in log2 units
    count: torch.Tensor  # int32 [programs], zero between launches
    rows: int
    heads: int
    kv_heads: int
    head_dim: int
    window: int
    config: StreamDecodeConfig

    @classmethod
    def allocate(
        cls,
        rows: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        *,
        window: int = 0,
        itemsize: int = 2,
        device: torch.device | str = "cuda",
        scratch: StreamDecodePlan | None = None,
        target: Target | None = None,
        config: StreamDecodeConfig | None = None,
    ) -> StreamDecodePlan:
        """Buffers for batches of exactly `rows` rows (a captured size); `scratch` of a plan of the same shape is
        shared, since launches of one stream never overlap."""
        device = torch.device(device)
        target = target or target_of(device)
        config = config or stream_decode_config(target, padded_head(head_dim), itemsize)
        require(rows <= MAX_ROWS, f"stream_decode: at most {MAX_ROWS} rows")
        require(heads // kv_heads <= MAX_BLOCK_M, f"stream_decode: at most {MAX_BLOCK_M} heads a kv head")
        _, block_r, _ = query_blocks(heads // kv_heads, 1)
        programs = target.num_sms * config.ctas_per_sm
        row_list = torch.zeros(rows, ROW, dtype=torch.int32, device=device)
        shares = torch.zeros(programs, SHARE, dtype=torch.int32, device=device)
        if scratch is not None:
            shape = (2 * programs, block_r, head_dim)
            require(scratch.partial.shape == shape, f"stream_decode: scratch must be {shape}")
            partial, lse, count = scratch.partial, scratch.lse, scratch.count
        else:
            partial = torch.empty(2 * programs, block_r, head_dim, dtype=torch.float32, device=device)
            lse = torch.empty(2 * programs, block_r, dtype=torch.float32, device=device)
            count = torch.zeros(programs, dtype=torch.int32, device=device)
        return cls(row_list, shares, partial, lse, count, rows, heads, kv_heads, head_dim, window, config)

    def plan(self, slots: torch.Tensor, context_lens: torch.Tensor) -> None:
        """List this step's rows and shares; row r's query is token r."""
        self.plan_launch(slots, context_lens).run()

    def plan_launch(self, slots: torch.Tensor, context_lens: torch.Tensor) -> Launch:
        """The launch behind `plan`: one program a row and share."""
        require(slots.shape[0] == self.rows, f"stream_decode: planned for {self.rows} rows, not {slots.shape[0]}")
        return Launch(
            stream_plan_kernel,
            (max(self.rows, self.shares.shape[0]),),
            {
                "slots_ptr": slots,
                "context_ptr": context_lens,
                "row_ptr": self.row_list,
                "share_ptr": self.shares,
                "rows": self.rows,
                "shares": self.shares.shape[0],
                "window": self.window,
                "min_tiles": self.config.min_tiles,
                "whole_tiles": self.config.whole_tiles,
            },
            {"KV_HEADS": self.kv_heads, "TILE": self.config.tile, "WINDOW": self.window > 0, "BLOCK_R": 1024},
        )


def streams(target: Target, rows: int, shape: tuple[int, int, int], itemsize: int, slots: int) -> bool:
    """Whether engines use `stream_decode` for one query in each of `rows` rows: the table's rows, where the kernel
    takes them and as many programs fit into a multiprocessor as a plan makes (16-bit caches, groups of up to 16).

    `shape`: heads, kv heads, head size. `slots`: rows of the block tables.
    """
    heads, kv_heads, _ = shape
    takes = rows <= MAX_ROWS and slots <= MAX_SLOTS
    fits = itemsize == 2 and heads // kv_heads <= FITTING_GROUP
    return takes and fits and rows in STREAM_DECODE_ROWS.get(target.capability, ())


def stream_decode(
    q: torch.Tensor,
    kv: torch.Tensor,
    block_table: torch.Tensor,
    plan: StreamDecodePlan,
    *,
    scale: float | None = None,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """q [T, H, D]; tokens of padded rows, and those after the rows', are left as they are. Returns [T, H, D] in q's
    dtype."""
    out = torch.empty_like(q) if out is None else out
    stream_decode_launch(q, kv, block_table, plan, scale=scale, softcap=softcap, sinks=sinks, out=out).run()
    return out


def stream_decode_launch(
    q: torch.Tensor,
    kv: torch.Tensor,
    block_table: torch.Tensor,
    plan: StreamDecodePlan,
    *,
    scale: float | None,
    softcap: float,
    sinks: torch.Tensor | None,
    out: torch.Tensor,
) -> Launch:
    """The launch behind `stream_decode`: one program a share."""
    check_attention(q, kv, block_table, out)
    require(block_table.shape[0] <= MAX_SLOTS, f"stream_decode: at most {MAX_SLOTS} slots")
    heads, kv_heads, head_dim = plan.heads, plan.kv_heads, plan.head_dim
    require((*q.shape[1:], kv.shape[2]) == (heads, head_dim, kv_heads), "stream_decode: not the plan's q")
    score_scale, cap_scale = score_scales(head_dim**-0.5 if scale is None else scale, softcap)
    block_m, block_r, _ = query_blocks(heads // kv_heads, 1)
    block_d = padded_head(head_dim)
    return Launch(
        stream_decode_kernel,
        (plan.shares.shape[0],),
        {
            **decode_tensors(q, kv, block_table, sinks, out),
            "row_ptr": plan.row_list,
            "share_ptr": plan.shares,
            "part_ptr": plan.partial,
            "lse_ptr": plan.lse,
            "count_ptr": plan.count,
            "window": plan.window,
            "score_scale": score_scale,
            "cap_scale": cap_scale,
            "ahead": plan.config.ahead,
        },
        {
            "GROUP": heads // kv_heads,
            "KV_HEADS": kv_heads,
            "HEAD_DIM": head_dim,
            "BLOCK_D": block_d,
            "BLOCK_M": block_m,
            "BLOCK_R": block_r,
            "BLOCK_S": max(4096 // (block_r * block_d), 1),
            "BLOCK_SIZE": kv.shape[3],
            "TILE": plan.config.tile,
            "SOFTCAP": softcap > 0.0,
            "WINDOW": plan.window > 0,
            "SINKS": sinks is not None,
            "PDL": overlaps(q),
        },
        num_warps=plan.config.num_warps,
        num_stages=plan.config.num_stages,
    )
