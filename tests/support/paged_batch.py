"""A random batch over a paged cache, and what `paged_decode` must give for it: for the tests of attention kernels."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch

from thranite_kernels.attention import paged_attention_reference
from thranite_kernels.launch import int32
from thranite_kernels.paged_decode import DecodePlan, paged_decode
from thranite_kernels.target import DecodeConfig
from thranite_kernels.testing import assert_close


@dataclass
class Batch:
    """A random batch over a scrambled cache; everything that no row may read is NaN."""

    q_lens: list[int]
    contexts: list[int]
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    block_size: int = 16
    padded: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    tensors: tuple[torch.Tensor, ...] = field(init=False)

    def __post_init__(self) -> None:
        rows = len(self.q_lens)
        blocks = [-(-c // self.block_size) for c in self.contexts]
        pages = sum(blocks) + 3
        shape = (pages, 2, self.kv_heads, self.block_size, self.head_dim)
        kv = torch.randn(shape, device=self.device).to(self.dtype)
        table = torch.full((rows + 2, max([*blocks, 1]) + 1), 1 << 20, dtype=torch.int32, device=self.device)
        slots = torch.randperm(rows + 2)[:rows].tolist()
        free = (torch.randperm(pages - 1) + 1).tolist()
        used = torch.zeros(pages, self.block_size, dtype=torch.bool)
        for slot, count, context in zip(slots, blocks, self.contexts, strict=True):
            own, free = free[:count], free[count:]
            table[slot, :count] = int32(own, self.device)
            for i, page in enumerate(own):
                used[page, : max(min(context - i * self.block_size, self.block_size), 0)] = True
        kv.transpose(2, 3).transpose(1, 2)[~used.to(self.device)] = float("nan")
        for row in self.padded:
            slots[row] = -1
        q = torch.randn(sum(self.q_lens), self.heads, self.head_dim, device=self.device).to(self.dtype)
        cu = torch.tensor([0, *self.q_lens]).cumsum(0)
        contexts = [0 if r in self.padded else c for r, c in enumerate(self.contexts)]
        self.tensors = (q, kv, table, int32(slots, self.device), int32(cu, self.device), int32(contexts, self.device))


Shape = tuple[int, int, int, list[int], list[int], tuple[int, ...]]
"""Heads, kv heads, head size; queries and context of each row; rows of padding."""


def hopper_batch(shape: Shape, dtype: torch.dtype) -> Batch:
    """On a GPU, in the pages that Hopper's kernels take."""
    heads, kv_heads, head_dim, q_lens, contexts, padded = shape
    return Batch(q_lens, contexts, heads, kv_heads, head_dim, 64, padded, dtype, "cuda")


def lengths(rows: int, longest: int) -> list[int]:
    """Of contexts or prompts."""
    draw = random.Random(rows)
    return [draw.randint(1, longest) for _ in range(rows)]


def spread_pages(batch: Batch) -> None:
    """The cache as a part of a larger tensor's pages."""
    q, kv, *rest = batch.tensors
    apart = torch.full((len(kv), 3, *kv.shape[1:]), torch.nan, dtype=kv.dtype, device=batch.device)
    apart[:, 1] = kv
    table, slots, cu, contexts = rest
    batch.tensors = (q, apart[:, 1], table, slots, cu, contexts)


def check_decode(
    batch: Batch,
    config: DecodeConfig | None = None,
    window: int = 0,
    softcap: float = 0.0,
    sink: bool = False,
) -> None:
    """One plan, two layers over the same scratch (the counters must be back at zero); padding's output stays."""
    q, kv, table, slots, cu, contexts = batch.tensors
    max_q = max(batch.q_lens)
    plan = DecodePlan.allocate(
        len(batch.q_lens), batch.heads, batch.kv_heads, batch.head_dim, max_q=max_q, window=window,
        device=batch.device, config=config,
    )  # fmt: skip
    plan.items.fill_(-7)
    plan.plan(slots, contexts, cu if max_q > 1 else None)
    sinks = torch.randn(batch.heads, device=batch.device) if sink else None
    expected = paged_attention_reference(q, kv, table, slots, cu, contexts, window=window, softcap=softcap, sinks=sinks)
    outs = [torch.full_like(q, 7.0) for _ in range(2)]
    for out in outs:
        paged_decode(q, kv, table, plan, softcap=softcap, sinks=sinks, out=out)
    assert torch.equal(outs[0], outs[1])
    for row in batch.padded:
        expected[cu[row] : cu[row + 1]] = 7.0
    assert_close(outs[0], expected)
    assert not bool(plan.count.any())
