"""Where each tensor of a checkpoint goes in a `Decoder`, by the names the families' checkpoints use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from thranite.layers.linear import Linear
from thranite.layers.norm import RMSNorm
from thranite.models.decoder import Decoder, DecoderLayer

# Gemma3ForConditionalGeneration: transformers before 4.52 wrote the first layout, later ones the second.
TEXT_PREFIXES = (
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.language_model.", "model."),
)
VISION_PREFIXES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
FUSED_ARCHITECTURES = {"Phi3ForCausalLM"}


@dataclass(frozen=True, slots=True)
class Target:
    """A place in the model: the shape its tensor must have, and how to put it there (converting its type)."""

    shape: tuple[int, ...]
    load: Callable[[Tensor], object]


def canonical_name(decoder: Decoder, name: str) -> str | None:
    """The name in `weight_targets`, or None for a tensor that this model is known not to need."""
    if decoder.spec.architecture == "Gemma3ForConditionalGeneration":
        if name.startswith(VISION_PREFIXES):
            return None
        for prefix, replacement in TEXT_PREFIXES:
            if name.startswith(prefix):
                name = replacement + name.removeprefix(prefix)
                break
    if name.endswith(".rotary_emb.inv_freq") or (name == "lm_head.weight" and decoder.head is None):
        return None
    return name


def weight_targets(decoder: Decoder) -> dict[str, Target]:
    """Every tensor the decoder needs, by canonical name."""
    embedding = decoder.embedding.weight
    targets = {"model.embed_tokens.weight": Target(tuple(embedding.shape), embedding.copy_)}
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


def norm_target(norm: RMSNorm) -> Target:
    return Target(norm.shape, norm.load)


def shard_targets(prefix: str, linear: Linear) -> Iterator[tuple[str, Target]]:
    """Each shard of a linear is a tensor of its own."""
    for shard in linear.shards.values():
        for parameter, shape in parameter_shapes(linear, shard.size):

            def load(source: Tensor, shard: str = shard.name, parameter: str = parameter) -> None:
                linear.load_shard(shard, parameter, source)

            yield f"{prefix}{shard.name}.{parameter}", Target(shape, load)


def stacked_targets(name: str, linear: Linear) -> Iterator[tuple[str, Target]]:
    """The checkpoint stacks the shards as we do: one tensor for all."""
    for parameter, shape in parameter_shapes(linear, linear.out_features):

        def load(source: Tensor, parameter: str = parameter) -> None:
            for shard in linear.shards.values():
                linear.load_shard(shard.name, parameter, source.narrow(0, shard.start, shard.size))

        yield f"{name}.{parameter}", Target(shape, load)


def parameter_shapes(linear: Linear, rows: int) -> list[tuple[str, tuple[int, ...]]]:
    shapes: list[tuple[str, tuple[int, ...]]] = [("weight", (rows, linear.in_features))]
    return [*shapes, ("bias", (rows,))] if linear.has_bias else shapes


def draw_dummy_weights(decoder: Decoder, seed: int = 0) -> None:
    """Random-normal weights, drawn where they lie: std 0.02, norms' multipliers around 1."""
    generator = torch.Generator(device=decoder.embedding.weight.device).manual_seed(seed)
    norms = {id(module.weight) for module in decoder.modules() if isinstance(module, RMSNorm)}
    for parameter in decoder.parameters():
        parameter.normal_(mean=float(id(parameter) in norms), std=0.02, generator=generator)
