"""A model as plain data: what every layer computes. No torch, so planning and refusing need no device."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Activation(StrEnum):
    SILU = "silu"
    GELU_TANH = "gelu_tanh"
    GELU = "gelu"


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary embedding of some layers. `inv_freq` covers `rotary_dim // 2` pairs (half-split, "neox" order).

    Scaling (linear, llama3, yarn, dynamic, longrope) is folded into `inv_freq` and `attention_factor` when the spec is
    made for an engine's `max_model_len`; nothing depends on a request's length later.
    """

    rotary_dim: int
    inv_freq: tuple[float, ...]
    attention_factor: float = 1.0  # multiplies cos and sin


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One decoder layer. `window`: keys visible to a query, itself included (None: all earlier ones)."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope: int | None  # index into ModelSpec.ropes; None: no position encoding
    window: int | None
    intermediate_size: int
    scale: float  # of attention scores
    softcap: float | None  # of attention scores
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    qk_norm: bool


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A decoder-only transformer. Tensor shapes follow from it alone.

    `sandwich_norms`: also normalise attention's and MLP's output before the residual add (Gemma).
    `unit_offset_norm`: RMSNorm multiplies by (1 + weight).
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    layers: tuple[LayerSpec, ...]
    ropes: tuple[RopeSpec, ...]
    activation: Activation
    norm_eps: float
    unit_offset_norm: bool
    sandwich_norms: bool
    embedding_scale: float  # multiplies embeddings; 1.0: none
    final_softcap: float | None
    tied_embeddings: bool
    max_position_embeddings: int
    dtype: str  # the checkpoint's: float32, bfloat16, float16, float64
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None

    @property
    def num_parameters(self) -> int:
        """Exact count of the weights' elements, tied ones once."""
        total = self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2) + self.hidden_size
        return total + self.layers_parameters

    @property
    def layers_parameters(self) -> int:
        """Those of all layers."""
        return sum(self.layer_parameters(layer) for layer in self.layers)

    def layer_parameters(self, layer: LayerSpec) -> int:
        hidden, q = self.hidden_size, layer.num_heads * layer.head_dim
        qkv = q + 2 * layer.num_kv_heads * layer.head_dim
        count = hidden * qkv + q * hidden + 3 * hidden * layer.intermediate_size
        count += (
            qkv * layer.qkv_bias + hidden * layer.out_bias + (2 * layer.intermediate_size + hidden) * layer.mlp_bias
        )
        count += 2 * layer.head_dim * layer.qk_norm
        return count + hidden * (4 if self.sandwich_norms else 2)


DTYPE_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
