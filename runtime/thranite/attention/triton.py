"""Attention on the GPU through Triton kernels: rope and the cache write in one, split-KV decode, tiled prefill.

Which kernel serves a row is the batch's choice: its first rows have one query each and are in the decode kernel's work
lists, the others in the prefill kernel's. Lists are made once a step, for each kind of layer (`LayerKind`). Tokens that
are in none are padding, and what attention gives for them is undefined.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thranite.attention.base import AttentionBatch, KVCache
from thranite.layers.rotary import rotary_table
from thranite.models.spec import ModelSpec
from thranite_kernels.paged_decode import DecodePlan, decode_descriptor, paged_decode
from thranite_kernels.paged_prefill import PrefillPlan, kv_descriptor, paged_prefill, plan_config
from thranite_kernels.rope_kv import rope_kv

DecodeScratch = dict[tuple[int, int, int], DecodePlan]
"""The first plan of each number of heads, of kv heads and head size: its partial results and counters are those of all
later ones, whatever their rows and windows, as launches of one stream never overlap."""


@dataclass(frozen=True, slots=True)
class LayerKind:
    """Layers that share work lists."""

    group: int
    window: int | None
    heads: int
    kv_heads: int
    head_dim: int
    itemsize: int  # bytes of a cache's element
    softcap: float | None = None


@dataclass(frozen=True, slots=True)
class TritonBatch(AttentionBatch):
    """A batch whose host copies are empty: everything the kernels need is on the device."""

    decode_plans: Mapping[LayerKind, DecodePlan] | None = None
    prefill_plans: Mapping[LayerKind, PrefillPlan] | None = None


class TritonAttention:
    """An `AttentionBackend` over `cache`, for CUDA devices. `max_positions`: of the rotary tables; `dtype`: of q."""

    def __init__(
        self, spec: ModelSpec, cache: KVCache, max_positions: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._spec = spec
        self._layers = [cache.layer(index) for index in range(len(spec.layers))]
        self._tables = [_table(rope, max_positions, device) for rope in spec.ropes]
        self._descriptors: dict[int, Any] = {}  # for prompts
        self._decode_descriptors: dict[int, Any] = {}
        self.kinds = [
            LayerKind(
                group, layer.window, layer.num_heads, layer.num_kv_heads, layer.head_dim, pages.itemsize, layer.softcap
            )
            for layer, (group, pages) in zip(spec.layers, self._layers, strict=True)
        ]
        self._tiles = {  # of prompts
            kind: plan_config(pages, kind.heads, dtype, window=kind.window or 0, softcap=kind.softcap or 0.0)
            for kind, (_, pages) in zip(self.kinds, self._layers, strict=True)
        }

    def forget_addresses(self) -> None:
        """The cache's memory has moved."""
        self._descriptors.clear()
        self._decode_descriptors.clear()

    def decode_plans(self, rows: int, device: torch.device, scratch: DecodeScratch) -> dict[LayerKind, DecodePlan]:
        """Work lists for `rows` single-query rows."""
        plans = {}
        for kind in dict.fromkeys(self.kinds):
            shape = (kind.heads, kind.kv_heads, kind.head_dim)
            plans[kind] = DecodePlan.allocate(
                rows,
                *shape,
                window=kind.window or 0,
                itemsize=kind.itemsize,
                device=device,
                scratch=scratch.get(shape),
            )
            scratch.setdefault(shape, plans[kind])
        return plans

    def prefill_plans(self, rows: int, tokens: int, device: torch.device) -> dict[LayerKind, PrefillPlan]:
        """Work lists for `rows` rows of `tokens` tokens in all."""
        return {
            kind: PrefillPlan.allocate(rows, tokens, kind.heads, kind.kv_heads, config=config, device=device)
            for kind, config in self._tiles.items()
        }

    def attend(
        self, layer: int, qkv: Tensor, batch: AttentionBatch, q_norm: Tensor | None, k_norm: Tensor | None
    ) -> Tensor:
        """See `AttentionBackend.attend`; the batch is a TritonBatch whose work lists were filled for this step."""
        if not isinstance(batch, TritonBatch):
            raise TypeError("TritonAttention takes a TritonBatch")
        spec, kind = self._spec.layers[layer], self.kinds[layer]
        group, pages = self._layers[layer]
        q = rope_kv(
            qkv,
            pages,
            batch.slot_mappings[group],
            batch.positions,
            None if spec.rope is None else self._tables[spec.rope],
            heads=spec.num_heads,
            q_weight=q_norm,
            k_weight=k_norm,
            eps=self._spec.norm_eps,
        )
        out = torch.empty_like(q)
        table = batch.block_tables[group]
        cap = spec.softcap or 0.0
        if batch.decode_plans is not None:
            plan = batch.decode_plans[kind]
            if layer not in self._decode_descriptors:
                self._decode_descriptors[layer] = decode_descriptor(q, pages, plan)
            descriptor = self._decode_descriptors[layer]
            paged_decode(q, pages, table, plan, scale=spec.scale, softcap=cap, out=out, descriptor=descriptor)
        if batch.prefill_plans is not None:
            tiles = batch.prefill_plans[kind]
            if layer not in self._descriptors:
                self._descriptors[layer] = kv_descriptor(pages, tiles.config)
            paged_prefill(
                q,
                pages,
                table,
                tiles,
                scale=spec.scale,
                window=spec.window or 0,
                softcap=cap,
                out=out,
                descriptor=self._descriptors[layer],
            )
        return out.view(len(out), -1)


def _table(rope: Any, positions: int, device: torch.device) -> Tensor:
    """fp32 [positions, rotary_dim]: cosines, then sines."""
    return rotary_table(rope, torch.arange(positions, device=device), torch.float32).flatten(1).contiguous()
