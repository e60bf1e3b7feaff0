"""Where each tensor of a checkpoint goes in a `Decoder`, by the names the families' checkpoints use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

from torch import Tensor

from thranite.layers.embedding import Embedding
from thranite.layers.linear import Linear, Shard
from thranite.layers.norm import RMSNorm
from thranite.models.decoder import Decoder, DecoderLayer
from thranite.models.partition import Cut, whole

# Gemma3ForConditionalGeneration: transformers before 4.52 wrote the first layout, later ones the second.
TEXT_PREFIXES = (
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.language_model.", "model."),
)
VISION_PREFIXES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
FUSED_ARCHITECTURES = {"Phi3ForCausalLM"}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Part:
    """A region of a checkpoint's tensor, a cut of each side, and how to put it in its place (converting its type)."""

    region: tuple[Cut, ...]
    load: Callable[[Tensor], object]

    def of(self, tensor: Tensor) -> Tensor:
        """The region, without a copy: of a mapped tensor nothing else is read."""
        for side, cut in enumerate(self.region):
            tensor = tensor.narrow(side, cut.first, cut.size)
        return tensor


@dataclass(frozen=True, slots=True)
class Target:
    """Where a checkpoint's tensor of `shape` goes on this rank."""

    shape: tuple[int, ...]
    parts: tuple[Part, ...]

    def load(self, tensor: Tensor) -> None:
        for part in self.parts:
            part.load(part.of(tensor))

    @property
    def share(self) -> float:
        """Of the tensor's bytes, what this rank reads."""
        return sum(prod(cut.size for cut in part.region) for part in self.parts) / max(prod(self.shape), 1)


def canonical_name(decoder: Decoder, name: str) -> str | None:
    """The name in `weight_targets`, or None for a tensor that this model is known not to need. A tied head is the
    embedding."""
    if decoder.spec.architecture == "Gemma3ForConditionalGeneration":
        if name.startswith(VISION_PREFIXES):
            return None
        for prefix, replacement in TEXT_PREFIXES:
            if name.startswith(prefix):
                name = replacement + name.removeprefix(prefix)
                break
    if name.endswith(".rotary_emb.inv_freq"):
        return None
    return EMBEDDING if name == HEAD and decoder.head is None else name


def weight_targets(decoder: Decoder) -> dict[str, Target]:
    """Every tensor the decoder needs, by canonical name."""
    targets = {EMBEDDING: embedding_target(decoder.embedding)}
    targets["model.norm.weight"] = norm_target(decoder.norm)
    if decoder.head is not None:
        targets.update(shard_targets("", decoder.head))
    fused = decoder.spec.architecture in FUSED_ARCHITECTURES
    for index, layer in enumerate(decoder.layers):
        if not isinstance(layer, DecoderLayer):
            raise TypeError(f"layer {index} is a {type(layer).__name__}")
        targets.update(layer_targets(f"model.layers.{index}.", layer, fused))
    return targets


def layer_targets(prefix: str, layer: DecoderLayer, fused: bool) -> Iterator[tuple[str, Target]]:
    attention, mlp = prefix + "self_attn.", prefix + "mlp."
    if fused:
        yield from stacked_targets(attention + "qkv_proj", layer.attention.qkv)
        yield from stacked_targets(mlp + "gate_up_proj", layer.mlp.gate_up)
    else:
        yield from shard_targets(attention, layer.attention.qkv)
        yield from shard_targets(mlp, layer.mlp.gate_up)
    yield from shard_targets(attention, layer.attention.out)
    yield from shard_targets(mlp, layer.mlp.down)
    for name, norm in (("q_norm", layer.attention.q_norm), ("k_norm", layer.attention.k_norm)):
        if norm is not None:
            yield f"{attention}{name}.weight", norm_target(norm)
    for name, norm in layer_norms(layer).items():
        yield f"{prefix}{name}.weight", norm_target(norm)


def layer_norms(layer: DecoderLayer) -> dict[str, RMSNorm]:
    """Checkpoints call the MLP's norm by where it stands: after attention, unless attention's output has its own."""
    if layer.attention_out_norm is None or layer.mlp_out_norm is None:
        return {"input_layernorm": layer.attention_norm, "post_attention_layernorm": layer.mlp_norm}
    return {
        "input_layernorm": layer.attention_norm,
        "post_attention_layernorm": layer.attention_out_norm,
        "pre_feedforward_layernorm": layer.mlp_norm,
        "post_feedforward_layernorm": layer.mlp_out_norm,
    }


def embedding_target(embedding: Embedding) -> Target:
    region = (embedding.rows, whole(embedding.weight.shape[1]))
    return Target(tuple(cut.total for cut in region), (Part(region, embedding.load),))


def norm_target(norm: RMSNorm) -> Target:
    return Target(norm.shape, (Part((whole(norm.shape[0]),), norm.load),))


def shard_targets(prefix: str, linear: Linear) -> Iterator[tuple[str, Target]]:
    """Each shard of a linear is a tensor of its own."""
    for shard in linear.shards.values():
        for parameter in linear_parameters(linear):
            part = shard_part(linear, shard, parameter, 0, shard.rows.total)
            yield f"{prefix}{shard.name}.{parameter}", Target(tuple(cut.total for cut in part.region), (part,))


def stacked_targets(name: str, linear: Linear) -> Iterator[tuple[str, Target]]:
    """The checkpoint stacks the shards as we do: one tensor for all."""
    for parameter in linear_parameters(linear):
        yield f"{name}.{parameter}", stacked_target(linear, parameter)


def stacked_target(linear: Linear, parameter: str) -> Target:
    total, before = sum(shard.rows.total for shard in linear.shards.values()), 0
    parts = []
    for shard in linear.shards.values():
        parts.append(shard_part(linear, shard, parameter, before, total))
        before += shard.rows.total
    return Target(tuple(cut.total for cut in parts[0].region), tuple(parts))


def shard_part(linear: Linear, shard: Shard, parameter: str, before: int, total: int) -> Part:
    """This rank's part of a shard whose rows stand behind `before` others in a tensor of `total` rows."""

    def load(source: Tensor) -> None:
        linear.load_shard(shard.name, parameter, source)

    rows = Cut(before + shard.rows.first, shard.rows.size, total)
    return Part((rows, linear.inputs) if parameter == "weight" else (rows,), load)


def linear_parameters(linear: Linear) -> list[str]:
    return ["weight", "bias"] if linear.has_bias else ["weight"]
