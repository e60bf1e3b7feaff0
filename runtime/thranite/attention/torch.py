"""Attention over the paged KV cache in plain torch operations, on any device: the CPU's backend and the reference.

Per step and KV group the plan (which rows together, page indices, masks) is made once, at the group's first layer, and
kept until another batch comes. A layer then normalises, rotates, writes its keys and values, gathers each row's pages
into dense keys and values, and attends.

Nothing beyond a row's context reaches its result: padding repeats the row's own last page, and a page is zeroed when
its first token is written, so the unwritten end of a page is finite and masked.
"""

from __future__ import annotations

from torch import Tensor

from thranite.attention.base import AttentionBatch, KVCache
from thranite.attention.group_plan import DecodeWork, GroupPlan, PrefillWork, plan_group
from thranite.attention.page_gather import PageGather
from thranite.attention.row_plan import split_rows
from thranite.attention.softmax_attention import softmax_attention
from thranite.layers.norm import rms_norm
from thranite.layers.rotary import rotary_table, rotate_, signed_tables
from thranite.models.spec import LayerSpec, ModelSpec


class BatchState:
    """What all layers share about one batch."""

    def __init__(self, batch: AttentionBatch) -> None:
        self.batch = batch
        self.decodes, self.prefills = split_rows(batch.host_query_starts, batch.host_context_lens)
        self.ropes: dict[int, tuple[Tensor, Tensor]] = {}
        self.groups: dict[int, GroupPlan] = {}


class TorchAttention:
    """An `AttentionBackend` over `cache`. `qkv` is overwritten by `attend`."""

    def __init__(self, spec: ModelSpec, cache: KVCache) -> None:
        self.spec = spec
        self.cache = cache
        self._gathers = [PageGather.of(cache.layer(i)[1]) for i in range(len(spec.layers))]
        self._state: BatchState | None = None

    def attend(
        self, layer: int, qkv: Tensor, batch: AttentionBatch, q_norm: Tensor | None, k_norm: Tensor | None
    ) -> Tensor:
        """See `AttentionBackend.attend`."""
        state = self._state
        if state is None or state.batch is not batch:
            state = self._state = BatchState(batch)
        spec = self.spec.layers[layer]
        group, pool = self.cache.layer(layer)
        plan = state.groups.get(group)
        if plan is None:
            plan = state.groups[group] = plan_group(
                batch,
                group,
                self._gathers[layer],
                spec.window,
                state.decodes,
                state.prefills,
                dtype=qkv.dtype,
                stored_exactly=pool.dtype == qkv.dtype,
            )
        heads = qkv.view(qkv.shape[0], -1, spec.head_dim)
        self._prepare(spec, heads, state, q_norm, k_norm)
        self._write(spec, heads, pool, plan)
        return self._attend(spec, heads, pool, self._gathers[layer], plan)

    def _prepare(
        self, spec: LayerSpec, heads: Tensor, state: BatchState, q_norm: Tensor | None, k_norm: Tensor | None
    ) -> None:
        """Head norms and rotation, in place. heads [T, heads + 2 * kv_heads, head_dim]."""
        queries, keys = spec.num_heads, spec.num_heads + spec.num_kv_heads
        if q_norm is not None and k_norm is not None:
            for part, weight in ((heads[:, :queries], q_norm), (heads[:, queries:keys], k_norm)):
                part.copy_(rms_norm(part, (spec.head_dim,), weight, self.spec.norm_eps))
        if spec.rope is not None:
            tables = state.ropes.get(spec.rope)
            if tables is None:
                table = rotary_table(self.spec.ropes[spec.rope], state.batch.positions, heads.dtype)
                tables = state.ropes[spec.rope] = signed_tables(table)
            rotate_(heads[:, :keys], *tables)

    def _write(self, spec: LayerSpec, heads: Tensor, pool: Tensor, plan: GroupPlan) -> None:
        """Store the step's keys and values at their slots."""
        if plan.fresh_pages is not None:
            pool.index_fill_(0, plan.fresh_pages, 0)
        stored = heads[:, spec.num_heads :].view(-1, 2, spec.num_kv_heads, spec.head_dim)
        pool[plan.write_pages, :, :, plan.write_offsets] = stored.to(pool.dtype)

    def _attend(self, spec: LayerSpec, heads: Tensor, pool: Tensor, gather: PageGather, plan: GroupPlan) -> Tensor:
        tokens, kv_heads = heads.shape[0], spec.num_kv_heads
        # Query heads of one kv head stand side by side: [T, kv_heads, heads per kv head, head_dim].
        q = heads[:, : spec.num_heads].view(tokens, kv_heads, -1, spec.head_dim)
        if len(plan.decodes) == 1 and not plan.prefills and plan.decodes[0].tokens is None:
            return self._decode(spec, q, pool, gather, plan.decodes[0]).reshape(tokens, -1)
        out = q.new_empty(q.shape)
        for work in plan.decodes:
            picked = q if work.tokens is None else q.index_select(0, work.tokens)
            result = self._decode(spec, picked, pool, gather, work)
            if work.tokens is None:
                out.copy_(result)
            else:
                out.index_copy_(0, work.tokens, result)
        for prefill in plan.prefills:
            self._prefill(spec, q, heads, pool, gather, prefill, out)
        return out.view(tokens, -1)

    def _decode(self, spec: LayerSpec, q: Tensor, pool: Tensor, gather: PageGather, work: DecodeWork) -> Tensor:
        """q [R, kv_heads, heads per kv head, head_dim]: the heads that share keys stand where queries do."""
        k, v = gather.gather(pool, work.index, q.shape[0])
        start, stop = work.keys
        k, v = k[:, :, start:stop].to(q.dtype), v[:, :, start:stop].to(q.dtype)
        return softmax_attention(q, k, v, work.mask, spec.scale, spec.softcap)

    def _prefill(
        self,
        spec: LayerSpec,
        q: Tensor,
        heads: Tensor,
        pool: Tensor,
        gather: PageGather,
        work: PrefillWork,
        out: Tensor,
    ) -> None:
        """One row: the heads that share keys stand where the batch does, keys are expanded without a copy."""
        row = slice(work.token, work.token + work.queries)
        if work.index is None:
            stored = heads[row, spec.num_heads :].view(work.queries, 2, spec.num_kv_heads, spec.head_dim)
            k, v = stored.permute(1, 2, 0, 3)[:, None].unbind(0)
        else:
            k, v = (x.to(q.dtype) for x in gather.gather(pool, work.index, 1))
        shares = q.shape[2]
        k, v = k.expand(shares, -1, -1, -1), v.expand(shares, -1, -1, -1)
        queries, results = q[row].permute(2, 1, 0, 3), out[row].permute(2, 1, 0, 3)
        for block, mask in work.blocks:
            start, stop = block.keys_start - work.first_key, block.keys_stop - work.first_key
            results[:, :, block.start : block.stop] = softmax_attention(
                queries[:, :, block.start : block.stop],
                k[:, :, start:stop],
                v[:, :, start:stop],
                mask,
                spec.scale,
                spec.softcap,
            )
