"""Drives a `Decoder` over a paged cache by hand: random pages, stale block tables, poisoned pools, any chunks."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor

from thranite.attention.base import AttentionBatch, KVCache
from thranite.attention.torch import TorchAttention
from thranite.engine.kv_groups import plan_kv_layout
from thranite.models.decoder import Decoder

NULL_PAGE = 0
Chunk = tuple[int, Sequence[int]]  # slot, tokens


class PagedDecoding:
    """Sequences in slots. Every page not yet written is NaN, entries out of a row's range name pages of others."""

    def __init__(
        self,
        decoder: Decoder,
        block_size: int,
        *,
        slots: int = 8,
        max_len: int = 256,
        seed: int = 0,
        kv_dtype: str | None = None,
    ) -> None:
        self.decoder = decoder
        self.random = random.Random(seed)
        self.block_size = block_size
        spec, dtype = decoder.rank_spec, str(decoder.dtype).removeprefix("torch.")
        self.layout = plan_kv_layout(spec, block_size, kv_dtype or dtype)
        entries = -(-max_len // block_size)
        num_blocks = 1 + slots * entries * len(self.layout.groups)
        self.cache = KVCache(self.layout, num_blocks, torch.device("cpu"))
        for layer in range(len(spec.layers)):
            self.cache.layer(layer)[1].fill_(math.nan)
        self.attention = TorchAttention(spec, self.cache)
        self.free = self.random.sample(range(1, num_blocks), num_blocks - 1)
        stale = [[self.random.randrange(num_blocks) for _ in range(entries)] for _ in range(slots)]
        self.tables = [torch.tensor(stale, dtype=torch.int32) for _ in self.layout.groups]
        self.lengths = [0] * slots
        self.owned: list[dict[tuple[int, int], int]] = [{} for _ in self.layout.groups]

    @torch.inference_mode()
    def step(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        """Logits [len(tokens), vocab] of each chunk, which continues its slot's sequence."""
        return list(self.logits(chunks).split([len(tokens) for _, tokens in chunks]))

    @torch.inference_mode()
    def logits(self, chunks: Sequence[Chunk], rows: Sequence[int] | None = None) -> Tensor:
        """Logits of all the chunks' tokens, or of some."""
        batch = self._batch(chunks)
        ids = torch.tensor([token for _, tokens in chunks for token in tokens])
        wanted = None if rows is None else torch.tensor(rows, dtype=torch.int64)
        return self.decoder.logits(self.decoder(ids, batch, self.attention, wanted))

    def run(self, sequences: Sequence[Sequence[int]], chunks: Sequence[Sequence[int]]) -> list[Tensor]:
        """All logits of each sequence; step i computes chunks[r][i] tokens of sequence r (0: sits out)."""
        collected: list[list[Tensor]] = [[] for _ in sequences]
        done = [0] * len(sequences)
        for sizes in zip(*chunks, strict=True):
            order = [r for r, size in enumerate(sizes) if size]
            if not order:
                continue
            self.random.shuffle(order)
            results = self.step([(r, sequences[r][done[r] : done[r] + sizes[r]]) for r in order])
            for r, logits in zip(order, results, strict=True):
                collected[r].append(logits)
                done[r] += sizes[r]
        return [torch.cat(parts) for parts in collected]

    def release(self, slot: int) -> None:
        """The sequence ends; its pages keep what they hold, and its table stays as it is."""
        self.lengths[slot] = 0
        for group in self.owned:
            for key in [key for key in group if key[0] == slot]:
                self.free.append(group.pop(key))

    def _batch(self, chunks: Sequence[Chunk]) -> AttentionBatch:
        starts = [0]
        contexts: list[int] = []
        positions: list[int] = []
        mappings: list[list[int]] = [[] for _ in self.layout.groups]
        for slot, tokens in chunks:
            before = self.lengths[slot]
            self.lengths[slot] = context = before + len(tokens)
            starts.append(starts[-1] + len(tokens))
            contexts.append(context)
            positions += range(before, context)
            for index, group in enumerate(self.layout.groups):
                self._allocate(index, slot, context)
                self._forget(index, slot, before, group.window)
                for position in range(before, context):
                    page = self.owned[index][slot, position // self.block_size]
                    mappings[index].append(page * self.block_size + position % self.block_size)
        return AttentionBatch(
            positions=torch.tensor(positions),
            query_starts=torch.tensor(starts, dtype=torch.int32),
            context_lens=torch.tensor(contexts, dtype=torch.int32),
            slots=torch.tensor([slot for slot, _ in chunks], dtype=torch.int32),
            block_tables=tuple(self.tables),
            slot_mappings=tuple(torch.tensor(mapping) for mapping in mappings),
            host_query_starts=starts,
            host_context_lens=contexts,
        )

    def _allocate(self, group: int, slot: int, context: int) -> None:
        for entry in range(-(-context // self.block_size)):
            if (slot, entry) not in self.owned[group]:
                page = self.free.pop()
                self.owned[group][slot, entry] = page
                self.tables[group][slot, entry] = page

    def _forget(self, group: int, slot: int, before: int, window: int | None) -> None:
        """Entries behind the window become the null page, as an engine that frees them would have it."""
        if window is not None:
            for entry in range(max(0, before - window + 1) // self.block_size):
                self.tables[group][slot, entry] = NULL_PAGE


def uneven_chunks(lengths: Sequence[int], prefills: Sequence[int], seed: int = 0) -> list[list[int]]:
    """For each sequence: pauses, a prefill in random pieces of `prefills[r]` tokens, then one token at a time."""
    source = random.Random(seed)
    plans: list[list[int]] = []
    for length, prefill in zip(lengths, prefills, strict=True):
        plan = [0] * source.randrange(3)
        left = prefill
        while left:
            size = source.randint(1, left)
            plan.append(size)
            left -= size
        plans.append(plan + [1] * (length - prefill))
    width = max(map(len, plans))
    return [plan + [0] * (width - len(plan)) for plan in plans]
