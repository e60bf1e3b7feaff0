"""How a model is cut over tensor-parallel ranks: pure arithmetic, no torch.

Query heads, the MLP's inner side and the vocabulary are cut into consecutive parts, one a rank. KV heads are cut
likewise where there are at least as many as ranks; otherwise each stands on several ranks, beside the query heads that
share it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from thranite.errors import ConfigError
from thranite.models.spec import LayerSpec, ModelSpec


@dataclass(frozen=True, slots=True)
class Cut:
    """A rank's part of one side of a tensor: elements `first` to `first + size` of `total`."""

    first: int
    size: int
    total: int


def whole(total: int) -> Cut:
    return Cut(0, total, total)


@dataclass(frozen=True, slots=True)
class Rank:
    """One of `size` ranks. The cuts are those of sizes that `check_size` lets pass."""

    index: int
    size: int

    def even(self, total: int) -> Cut:
        """Equal parts."""
        part = total // self.size
        return Cut(self.index * part, part, total)

    def vocabulary(self, total: int) -> Cut:
        """Parts of `vocabulary_rows` rows; the last ones may be short, or empty."""
        rows = vocabulary_rows(total, self.size)
        first = min(self.index * rows, total)
        return Cut(first, min(rows, total - first), total)

    def kv(self, heads: int, head_dim: int) -> Cut:
        """Rows of keys (or values) of this rank's KV heads."""
        count = kv_heads(heads, self.size)
        first = self.index * heads // self.size
        return Cut(first * head_dim, count * head_dim, heads * head_dim)


def vocabulary_rows(vocab_size: int, size: int) -> int:
    """Rows of the embedding and the head on each rank, padding included."""
    return -(-vocab_size // size)


def kv_heads(heads: int, size: int) -> int:
    """KV heads on each rank."""
    return max(heads // size, 1)


def rank_layer(layer: LayerSpec, size: int) -> LayerSpec:
    """What of a layer each rank computes."""
    return replace(
        layer,
        num_heads=layer.num_heads // size,
        num_kv_heads=kv_heads(layer.num_kv_heads, size),
        intermediate_size=layer.intermediate_size // size,
    )


def rank_spec(spec: ModelSpec, size: int) -> ModelSpec:
    """The model as each rank's attention and KV cache see it. The vocabulary stays whole: logits are gathered.

    Raises ConfigError for a size that does not divide the model.
    """
    check_size(spec, size)
    return spec if size == 1 else replace(spec, layers=tuple(rank_layer(layer, size) for layer in spec.layers))


def rank_parameters(spec: ModelSpec, size: int) -> int:
    """Elements of the weights on each rank, padding of the vocabulary included."""
    return replace(rank_spec(spec, size), vocab_size=vocabulary_rows(spec.vocab_size, size)).num_parameters


def divides(layer: LayerSpec, size: int) -> bool:
    """Whether each rank gets whole heads, all with the KV head they read, and an equal part of the MLP."""
    shared = layer.num_kv_heads % size == 0 or size % layer.num_kv_heads == 0
    return layer.num_heads % size == 0 and shared and layer.intermediate_size % size == 0


def possible_sizes(spec: ModelSpec) -> list[int]:
    most = min(layer.num_heads for layer in spec.layers)
    return [size for size in range(1, most + 1) if all(divides(layer, size) for layer in spec.layers)]


def check_size(spec: ModelSpec, size: int) -> None:
    """Raise ConfigError unless the model can be cut over `size` ranks."""
    layer = next((layer for layer in spec.layers if not divides(layer, size)), None)
    if layer is not None:
        raise ConfigError(
            f"--tensor-parallel-size {size}: a layer of {layer.num_heads} heads, {layer.num_kv_heads} KV heads and an "
            f"MLP of {layer.intermediate_size} cannot be split evenly over {size} ranks",
            f"sizes this model can be split into: {', '.join(map(str, possible_sizes(spec)))}",
        )
