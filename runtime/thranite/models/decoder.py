"""The one decoder: everything it does is read from a `ModelSpec`, layer by layer.

Over tensor-parallel ranks it holds its rank's part of every weight but the norms; what leaves a layer, hidden states
and logits, is whole on every rank. (The cuts are Megatron-LM's: columns, then rows, one sum for each half of a layer.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from thranite.attention.base import AttentionBackend, AttentionBatch
from thranite.layers.activation import gated
from thranite.layers.communicator import ALONE, Communicator
from thranite.layers.dense import dense
from thranite.layers.embedding import Embedding
from thranite.layers.fused import FusedLayers, LayerParts
from thranite.layers.linear import Linear, LinearMethod, UnquantizedMethod
from thranite.layers.module import Module
from thranite.layers.norm import RMSNorm
from thranite.models.partition import Cut, Rank, rank_spec, vocabulary_rows, whole
from thranite.models.spec import Activation, LayerSpec, ModelSpec


class Builder:
    """Makes a rank's share of a model's parts with its type, device and linear method."""

    def __init__(
        self,
        spec: ModelSpec,
        dtype: torch.dtype,
        device: torch.device,
        method: LinearMethod,
        communicator: Communicator = ALONE,
    ) -> None:
        self.spec, self.dtype, self.device, self.method = spec, dtype, device, method
        self.communicator = communicator
        self.rank = Rank(communicator.rank, communicator.size)
        # The ranks that what a layer leaves to add is still to be summed over: a norm between needs the sum before.
        self.unsummed = ALONE if spec.sandwich_norms else communicator

    def linear(self, inputs: Cut, *shards: tuple[str, Cut], bias: bool = False, padded_rows: int = 0) -> Linear:
        return Linear(
            inputs,
            shards,
            bias=bias,
            dtype=self.dtype,
            device=self.device,
            method=self.method,
            communicator=self.communicator,
            padded_rows=padded_rows,
        )

    def embedding(self) -> Embedding:
        return Embedding(
            self.spec.vocab_size,
            self.spec.hidden_size,
            self.spec.embedding_scale,
            dtype=self.dtype,
            device=self.device,
            communicator=self.communicator,
        )

    def head(self) -> Linear:
        rows = self.rank.vocabulary(self.spec.vocab_size)
        held = vocabulary_rows(self.spec.vocab_size, self.rank.size)
        return self.linear(whole(self.spec.hidden_size), ("lm_head", rows), padded_rows=held)

    def norm(self, size: int) -> RMSNorm:
        return RMSNorm(
            size, self.spec.norm_eps, unit_offset=self.spec.unit_offset_norm, dtype=self.dtype, device=self.device
        )


class Attention(Module):
    """QKV projection, the backend, output projection."""

    def __init__(self, build: Builder, layer: LayerSpec, index: int) -> None:
        super().__init__()
        hidden, q = whole(build.spec.hidden_size), build.rank.even(layer.num_heads * layer.head_dim)
        kv = build.rank.kv(layer.num_kv_heads, layer.head_dim)
        self.index = index
        self.qkv = build.linear(hidden, ("q_proj", q), ("k_proj", kv), ("v_proj", kv), bias=layer.qkv_bias)
        self.out = build.linear(q, ("o_proj", hidden), bias=layer.out_bias)
        self.out.follows_attention = True
        self.q_norm = build.norm(layer.head_dim) if layer.qk_norm else None
        self.k_norm = build.norm(layer.head_dim) if layer.qk_norm else None

    def attend(self, qkv: Tensor, batch: AttentionBatch, backend: AttentionBackend) -> Tensor:
        """What stands between the projections."""
        q_norm = None if self.q_norm is None else self.q_norm.weight
        k_norm = None if self.k_norm is None else self.k_norm.weight
        return backend.attend(self.index, qkv, batch, q_norm, k_norm)


class MLP(Module):
    """down(activation(gate(x)) * up(x))."""

    def __init__(self, build: Builder, layer: LayerSpec) -> None:
        super().__init__()
        hidden, inner = whole(build.spec.hidden_size), build.rank.even(layer.intermediate_size)
        self.gate_up = build.linear(hidden, ("gate_proj", inner), ("up_proj", inner), bias=layer.mlp_bias)
        self.down = build.linear(inner, ("down_proj", hidden), bias=layer.mlp_bias)
        self.activation = build.spec.activation

    def inner(self, x: Tensor) -> Tensor:
        """What `down` is to multiply."""
        fused = self.gate_up.gated(x) if self.activation is Activation.SILU else None
        return gated(self.activation, self.gate_up(x)) if fused is None else fused


class DecoderLayer(Module):
    """Attention and MLP around a residual stream; sandwich norms also normalise what is added to it."""

    def __init__(self, build: Builder, layer: LayerSpec, index: int) -> None:
        super().__init__()
        hidden, sandwich = build.spec.hidden_size, build.spec.sandwich_norms
        self.attention_norm = build.norm(hidden)
        self.attention = Attention(build, layer, index)
        self.attention_out_norm = build.norm(hidden) if sandwich else None
        self.mlp_norm = build.norm(hidden)
        self.mlp = MLP(build, layer)
        self.mlp_out_norm = build.norm(hidden) if sandwich else None
        self.communicator = build.communicator
        self.unsummed = build.unsummed

    def forward(
        self, x: Tensor, added: Tensor | None, batch: AttentionBatch, backend: AttentionBackend
    ) -> Tensor | None:
        """x [T, hidden] is the residual stream, updated in place; `added`, what the layer before left to add, goes into
        it first (`RMSNorm.after_adding`). Returns what this layer leaves, without sandwich norms not yet summed over
        the ranks."""
        return self.after_attention(x, self.attended(x, added, batch, backend))

    def attended(self, x: Tensor, added: Tensor | None, batch: AttentionBatch, backend: AttentionBackend) -> Tensor:
        """The heads' results [T, heads · head_dim]; keys and values of every token are in the cache."""
        attention = self.attention
        y = attention.qkv(self.attention_norm.after_adding(added, x, self.unsummed))
        return attention.attend(y, batch, backend)

    def after_attention(self, x: Tensor, heads: Tensor) -> Tensor | None:
        """The rest of the layer, in which no token sees another: any rows of both will do."""
        added = self._left_to_add(x, self.attention.out, heads, self.attention_out_norm)
        inner = self.mlp.inner(self.mlp_norm.after_adding(added, x, self.unsummed))
        return self._left_to_add(x, self.mlp.down, inner, self.mlp_out_norm)

    def _left_to_add(self, x: Tensor, linear: Linear, y: Tensor, norm: RMSNorm | None) -> Tensor | None:
        """Of `linear`'s product with `y`, which ends a half of the layer."""
        if norm is None:
            return linear.add_to(x, y)
        return norm(self.communicator.all_reduce(linear(y)))  # type: ignore[no-any-return]

    @property
    def parts(self) -> LayerParts:
        attention, mlp = self.attention, self.mlp
        return LayerParts(
            attention_norm=self.attention_norm,
            qkv=attention.qkv,
            attend=attention.attend,
            out=attention.out,
            mlp_norm=self.mlp_norm,
            gate_up=mlp.gate_up,
            down=mlp.down,
            activation=mlp.activation,
        )


class Decoder(Module):
    """Embedding, layers, final norm, head. Call it under `torch.inference_mode`.

    `spec` is the whole model; `rank_spec` what this rank's attention and KV cache see of it.
    """

    def __init__(
        self,
        spec: ModelSpec,
        dtype: torch.dtype,
        device: torch.device,
        method: LinearMethod | None = None,
        communicator: Communicator = ALONE,
    ) -> None:
        super().__init__()
        build = Builder(spec, dtype, device, method or UnquantizedMethod(), communicator)
        self.spec, self.rank_spec = spec, rank_spec(spec, communicator.size)
        self.dtype = dtype
        self.communicator, self.unsummed = communicator, build.unsummed
        self.embedding = build.embedding()
        layers = [DecoderLayer(build, layer, i) for i, layer in enumerate(spec.layers)]
        self.layers = nn.ModuleList(layers)
        self._in_order = layers  # a plain list: a part of a ModuleList is made anew each time
        self.norm = build.norm(spec.hidden_size)
        self.fused = None if spec.sandwich_norms else FusedLayers([layer.parts for layer in layers], self.norm)
        self.head = None if spec.tied_embeddings else build.head()

    def forward(
        self, input_ids: Tensor, batch: AttentionBatch, attention: AttentionBackend, rows: Tensor | None = None
    ) -> Tensor:
        """input_ids int64 [T] → hidden states after the final norm, of all tokens [T, hidden] or of `rows` (int64 [S],
        in any order) [S, hidden]. The cache gets every token's keys and values."""
        x: Tensor = self.embedding(input_ids)
        added: Tensor | None = None
        if self.fused is not None and self.fused.takes(x):
            self.fused.run(x, batch, attention)
        else:
            *before, last = self._in_order
            for layer in before:
                added = layer(x, added, batch, attention)
            if rows is not None and 4 * len(rows) <= 3 * len(x):  # what is read of a prompt is its end
                heads = last.attended(x, added, batch, attention)
                if len(rows) == 0:
                    return x[:0]
                x, heads = self.unsummed.whole_rows(x, rows), heads[rows]
                added = last.after_attention(x, heads)
                return self.norm.after_adding(added, x, self.unsummed)
            added = last(x, added, batch, attention)
        hidden = self.norm.after_adding(added, x, self.unsummed)
        return hidden if rows is None else hidden[rows]

    def logits(self, hidden: Tensor) -> Tensor:
        """[R, hidden] → [R, vocab] in fp32 (float64 for float64 models)."""
        return self.raw_logits(hidden).to(torch.promote_types(self.dtype, torch.float32))

    def raw_logits(self, hidden: Tensor) -> Tensor:
        """[R, hidden] → [R, vocab] as the head's product gives them; in fp32 or better where a softcap follows."""
        rows = dense(hidden, self.embedding.weight) if self.head is None else self.head(hidden)
        if self.communicator.size > 1:
            rows = self.communicator.all_gather(rows)[:, : self.spec.vocab_size].contiguous()
        cap = self.spec.final_softcap
        if cap is None:
            return rows
        return rows.to(torch.promote_types(self.dtype, torch.float32)).div_(cap).tanh_().mul_(cap)
