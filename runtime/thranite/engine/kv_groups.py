"""KV groups: which layers share a block table, and how a page is laid out.

All groups draw pages of equal bytes from one pool. A page of a group holds `block_size` tokens of each of the group's
layers. Layers are grouped by what they keep (all tokens, or the last `window`), so that a window group can free pages
behind its window; a kind with many layers is split into several groups of the same number of layers, because pages are
equal. (The idea of equal pages over split groups is vLLM's hybrid KV cache manager.)
"""

from __future__ import annotations

from dataclasses import dataclass

from thranite.models.spec import DTYPE_BYTES, ModelSpec


@dataclass(frozen=True, slots=True)
class KVGroup:
    """`layers[i]` (None: padding) keeps its keys and values in buffer i of each of the group's pages."""

    window: int | None
    layers: tuple[int | None, ...]
    dtype: str
    num_kv_heads: int
    head_dim: int

    def peak_blocks(self, num_tokens: int, block_size: int, chunk: int) -> int:
        """Most pages a sequence of `num_tokens` holds at once if it is computed `chunk` tokens a step at most."""
        kept = num_tokens if self.window is None else min(num_tokens, self.window + chunk + block_size)
        return -(-kept // block_size)

    def token_bytes(self) -> int:
        """Bytes of one token in one layer, keys and values."""
        return 2 * self.num_kv_heads * self.head_dim * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class KVLayout:
    """How the KV cache is cut. `buffer_bytes`: of one page in one of its `num_buffers` layer buffers."""

    block_size: int  # tokens a page
    groups: tuple[KVGroup, ...]
    num_buffers: int
    buffer_bytes: int

    @property
    def page_bytes(self) -> int:
        return self.num_buffers * self.buffer_bytes

    def blocks_for(self, num_tokens: int, chunk: int) -> int:
        """Most pages over all groups that one sequence holds at once; `chunk` as in `KVGroup.peak_blocks`."""
        return sum(group.peak_blocks(num_tokens, self.block_size, chunk) for group in self.groups)


def plan_kv_layout(spec: ModelSpec, block_size: int, dtype: str) -> KVLayout:
    """Group the layers of `spec`. `dtype` is that of stored keys and values."""
    kinds: dict[tuple[int | None, int, int], list[int]] = {}
    for index, layer in enumerate(spec.layers):
        kinds.setdefault((layer.window, layer.num_kv_heads, layer.head_dim), []).append(index)
    size = _group_size([len(layers) for layers in kinds.values()])
    groups = []
    for (window, heads, dim), layers in kinds.items():
        for first in range(0, len(layers), size):
            part: list[int | None] = list(layers[first : first + size])
            part += [None] * (size - len(part))
            groups.append(KVGroup(window, tuple(part), dtype, heads, dim))
    buffer_bytes = max(block_size * group.token_bytes() for group in groups)
    return KVLayout(block_size, tuple(groups), size, buffer_bytes)


MAX_PADDING = 0.1  # of a page's bytes; more block tables cost the host more than this much memory is worth


def _group_size(counts: list[int]) -> int:
    """Layers a group: the largest size that pads little, else the one that pads least.

    `counts`: layers of each kind. Sizes under half of the smallest count are not tried: they only add tables.
    """
    smallest = min(counts)
    sizes = range(smallest, max(smallest // 2, 1) - 1, -1)
    padding = {size: sum(-count % size for count in counts) / sum(counts) for size in sizes}
    return next((size for size in sizes if padding[size] <= MAX_PADDING), min(sizes, key=padding.__getitem__))
