"""What several families read from config.json in the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from thranite.models.config_reader import ConfigReader
from thranite.models.rope import KNOWN_KEYS, rope_spec, rope_type
from thranite.models.spec import LayerSpec, ModelSpec, RopeSpec

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, slots=True)
class LoadContext:
    """What of a spec comes from outside the model's own section of config.json."""

    architecture: str
    max_model_len: int | None
    dtype: str
    eos_token_ids: tuple[int, ...]


def layer_types(config: ConfigReader, implied: Sequence[str]) -> Sequence[str]:
    """`layer_types` where config.json gives it, else what the family's older options imply."""
    given = config.get("layer_types")
    if given is None:
        return implied
    if not isinstance(given, list | tuple) or any(kind not in (FULL, SLIDING) for kind in given):
        raise config.unsupported("layer_types", f"a list of {FULL} and {SLIDING} is needed")
    if len(given) != len(implied):
        raise config.unsupported("layer_types", f"num_hidden_layers is {len(implied)}")
    return list(given)


def windows(types: Sequence[str], window: int | None, length: int) -> list[int | None]:
    """A window no shorter than the engine's longest sequence hides nothing, so it counts as full attention."""
    effective = None if window is None or window >= length else window
    return [effective if kind == SLIDING else None for kind in types]


def longest(config: ConfigReader, context: LoadContext) -> int:
    return context.max_model_len or config.integer("max_position_embeddings")


def rope_parameters(config: ConfigReader, renamed: Mapping[str, str] | None = None) -> dict[str, Any]:
    """One flat dictionary in the v5 spelling, from either spelling. `renamed`: a family's own names of rope types."""
    key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    given = config.get(key) or {}
    if not isinstance(given, Mapping) or any(isinstance(value, Mapping) for value in given.values()):
        raise config.unsupported(key, "one flat set of parameters is needed")
    theta = config.get("rope_theta")
    parameters = {"rope_theta": 10_000.0 if theta is None else theta, **given}
    kind = rope_type(parameters)
    parameters["rope_type"] = kind = (renamed or {}).get(kind, kind)
    original = config.get("original_max_position_embeddings")
    if original is not None and "original_max_position_embeddings" in KNOWN_KEYS.get(kind, ()):
        parameters["original_max_position_embeddings"] = original
    return parameters


def whole_heads(config: ConfigReader, parameters: dict[str, Any]) -> dict[str, Any]:
    """`parameters`, which must not rotate a part of each head."""
    partial = parameters.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    if partial != 1.0:
        raise config.unsupported("partial_rotary_factor", "this family rotates whole heads", partial)
    return parameters


def head_dim(config: ConfigReader) -> int:
    """`head_dim` where given, else hidden_size split over the heads."""
    given = config.optional_integer("head_dim")
    if given is not None:
        return given
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    if hidden % heads:
        raise config.unsupported("num_attention_heads", f"hidden_size {hidden} is no multiple of it")
    return hidden // heads


def kv_heads(config: ConfigReader) -> int:
    """`num_key_value_heads`; null means one for each query head."""
    heads = config.integer("num_attention_heads")
    shared = config.optional_integer("num_key_value_heads") or heads
    if heads % shared:
        raise config.unsupported("num_key_value_heads", f"num_attention_heads {heads} is no multiple of it")
    return shared


def make_rope(config: ConfigReader, context: LoadContext, parameters: Mapping[str, Any]) -> RopeSpec:
    return rope_spec(parameters, head_dim(config), config.integer("max_position_embeddings"), context.max_model_len)


def make_spec(
    config: ConfigReader,
    context: LoadContext,
    layers: Sequence[LayerSpec],
    ropes: Sequence[RopeSpec],
    *,
    activation: str = "hidden_act",
    gemma: bool = False,
    final_softcap: float | None = None,
) -> ModelSpec:
    """`gemma`: (1 + w) norms, also after attention and MLP, and embeddings times sqrt(hidden_size)."""
    hidden = config.integer("hidden_size")
    return ModelSpec(
        architecture=context.architecture,
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden,
        layers=tuple(layers),
        ropes=tuple(ropes),
        activation=config.activation(activation),
        norm_eps=config.number("rms_norm_eps"),
        unit_offset_norm=gemma,
        sandwich_norms=gemma,
        embedding_scale=hidden**0.5 if gemma else 1.0,
        final_softcap=final_softcap,
        tied_embeddings=config.flag("tie_word_embeddings"),
        max_position_embeddings=config.integer("max_position_embeddings"),
        dtype=context.dtype,
        eos_token_ids=context.eos_token_ids,
        bos_token_id=config.get("bos_token_id"),
    )
