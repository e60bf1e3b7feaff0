"""The contract between model and attention backend, and the paged KV cache both see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from thranite.engine.kv_groups import KVLayout
from thranite.layers.own_memory import own_bytes, own_zeros

TORCH_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """T query tokens in R rows; row r owns tokens `query_starts[r]` to `query_starts[r + 1]`.

    A row's tokens are the last of its context: token i of a row with q tokens and context c stands at position
    c - q + i. The `host_` copies serve backends that plan on the host; they hold the same values.
    """

    positions: Tensor  # int64 [T]
    query_starts: Tensor  # int32 [R + 1]
    context_lens: Tensor  # int32 [R], keys of the row, this step's included
    slots: Tensor  # int32 [R], row of the block tables
    block_tables: tuple[Tensor, ...]  # a KV group each: int32 [max_slots, max_blocks]
    slot_mappings: tuple[Tensor, ...]  # a KV group each: int64 [T], page * block_size + offset of the token's KV
    host_query_starts: Sequence[int]
    host_context_lens: Sequence[int]


class KVCache:
    """The page pool on the device: one byte buffer per layer place of a page, zero at birth."""

    def __init__(self, layout: KVLayout, num_blocks: int, device: torch.device) -> None:
        self.layout = layout
        self.num_blocks = num_blocks
        self.buffers = [
            own_zeros(num_blocks, layout.buffer_bytes, dtype=torch.uint8, device=device)
            for _ in range(layout.num_buffers)
        ]
        self._layers: dict[int, tuple[int, Tensor]] = {}
        for index, group in enumerate(layout.groups):
            shape = (num_blocks, 2, group.num_kv_heads, layout.block_size, group.head_dim)
            used = layout.block_size * group.token_bytes()
            for place, layer in enumerate(group.layers):
                if layer is not None:
                    view = self.buffers[place][:, :used].view(TORCH_DTYPES[group.dtype]).view(shape)
                    self._layers[layer] = (index, view)

    def layer(self, layer: int) -> tuple[int, Tensor]:
        """KV group of a layer, and its [num_blocks, 2 (keys, values), kv_heads, block_size, head_dim] view."""
        return self._layers[layer]

    @property
    def num_bytes(self) -> int:
        """Of all pages."""
        return sum(buffer.nbytes for buffer in self.buffers)

    @property
    def held_bytes(self) -> int:
        """What the pages take of the device: up to 2 MiB more for each buffer, nothing once released."""
        return sum(buffer.untyped_storage().nbytes() for buffer in self.buffers)

    def release(self) -> None:
        """Give the memory back. Views stay, and are of no use until `restore`."""
        for buffer in self.buffers:
            buffer.untyped_storage().resize_(0)

    def restore(self) -> None:
        """Memory again, zero as at birth, at other addresses."""
        for buffer in self.buffers:
            buffer.untyped_storage().resize_(own_bytes(buffer.nbytes, buffer.device))
            buffer.zero_()

    def copy_pages(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole pages, (source, destination) each, in every layer. The host does not wait for a GPU."""
        device, places = self.buffers[0].device, torch.tensor(pairs)
        if device.type == "cuda":
            places = places.pin_memory()
        source, target = places.to(device, non_blocking=True).unbind(1)
        for buffer in self.buffers:
            buffer[target] = buffer[source]


class AttentionBackend(Protocol):
    """Everything between a layer's QKV projection and its output projection."""

    def attend(
        self, layer: int, qkv: Tensor, batch: AttentionBatch, q_norm: Tensor | None, k_norm: Tensor | None
    ) -> Tensor:
        """Normalise (if weights are given) and rotate q and k, store k and v in the cache, attend.

        qkv [T, (heads + 2 * kv_heads) * head_dim] → [T, heads * head_dim].
        """
        ...
