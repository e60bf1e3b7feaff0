"""Llama and the families that differ from it in biases, head norms, windows and rope: Mistral, Qwen2, Qwen3, Phi3."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from thranite.models.config_reader import ConfigReader
from thranite.models.shared import (
    FULL,
    SLIDING,
    LoadContext,
    head_dim,
    kv_heads,
    layer_types,
    longest,
    make_rope,
    make_spec,
    rope_parameters,
    whole_heads,
    windows,
)
from thranite.models.spec import LayerSpec, ModelSpec

# What config.json may leave out, as the families' own configuration classes have it.
LLAMA_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MISTRAL_DEFAULTS: dict[str, Any] = LLAMA_DEFAULTS | {
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096 * 32,
    "sliding_window": 4096,
}
QWEN2_DEFAULTS: dict[str, Any] = LLAMA_DEFAULTS | {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "bos_token_id": None,
    "eos_token_id": None,
}
QWEN3_DEFAULTS: dict[str, Any] = QWEN2_DEFAULTS | {"head_dim": 128}
PHI3_DEFAULTS: dict[str, Any] = LLAMA_DEFAULTS | {
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 32000,
}


@dataclass(frozen=True, slots=True)
class Biases:
    qkv: bool = False
    out: bool = False
    mlp: bool = False


def llama(config: ConfigReader, context: LoadContext) -> ModelSpec:
    attention = config.flag("attention_bias")
    biases = Biases(attention, attention, config.flag("mlp_bias"))
    return _build(config, context, _uniform(config, FULL), None, biases)


def mistral(config: ConfigReader, context: LoadContext) -> ModelSpec:
    window = config.optional_integer("sliding_window")
    return _build(config, context, _uniform(config, FULL if window is None else SLIDING), window, Biases())


def qwen2(config: ConfigReader, context: LoadContext) -> ModelSpec:
    return _build(config, context, *_qwen_windows(config), Biases(qkv=True))


def qwen3(config: ConfigReader, context: LoadContext) -> ModelSpec:
    attention = config.flag("attention_bias")
    return _build(config, context, *_qwen_windows(config), Biases(attention, attention), qk_norm=True)


def phi3(config: ConfigReader, context: LoadContext) -> ModelSpec:
    """Phi3 alone rotates a part of each head, and once called its longrope "su" or "yarn"."""
    parameters = rope_parameters(config, {"su": "longrope", "yarn": "longrope"})
    parameters.setdefault("partial_rotary_factor", config.get("partial_rotary_factor") or 1.0)
    if parameters["rope_type"] == "default":
        parameters.pop("original_max_position_embeddings", None)
    elif parameters["rope_type"] != "longrope":
        raise config.unsupported("rope_scaling", "Phi3 knows default and longrope")
    window = config.optional_integer("sliding_window")
    types = _uniform(config, FULL if window is None else SLIDING)
    return _build(config, context, types, window, Biases(), parameters=parameters)


def _uniform(config: ConfigReader, kind: str) -> Sequence[str]:
    """All layers alike: these families' reference has no mixed layers, so a list that says otherwise is refused."""
    implied = [kind] * config.integer("num_hidden_layers")
    if list(layer_types(config, implied)) != implied:
        raise config.unsupported("layer_types", f"every layer of this family has {kind}")
    return implied


def _qwen_windows(config: ConfigReader) -> tuple[Sequence[str], int | None]:
    window = config.optional_integer("sliding_window") if config.flag("use_sliding_window") else None
    first = config.get("max_window_layers")
    if window is not None and (isinstance(first, bool) or not isinstance(first, int) or first < 0):
        raise config.unsupported("max_window_layers", "an integer from 0 on is needed")
    implied = [
        SLIDING if window is not None and layer >= first else FULL
        for layer in range(config.integer("num_hidden_layers"))
    ]
    return layer_types(config, implied), window


def _build(
    config: ConfigReader,
    context: LoadContext,
    types: Sequence[str],
    window: int | None,
    biases: Biases,
    *,
    qk_norm: bool = False,
    parameters: Mapping[str, Any] | None = None,
) -> ModelSpec:
    if parameters is None:
        parameters = whole_heads(config, rope_parameters(config))
    layer: dict[str, Any] = {
        "num_heads": config.integer("num_attention_heads"),
        "num_kv_heads": kv_heads(config),
        "head_dim": head_dim(config),
        "rope": 0,
        "intermediate_size": config.integer("intermediate_size"),
        "scale": head_dim(config) ** -0.5,
        "softcap": None,
        "qkv_bias": biases.qkv,
        "out_bias": biases.out,
        "mlp_bias": biases.mlp,
        "qk_norm": qk_norm,
    }
    layers = [LayerSpec(window=w, **layer) for w in windows(types, window, longest(config, context))]
    return make_spec(config, context, layers, [make_rope(config, context, parameters)])


FAMILIES: Mapping[str, tuple[Callable[[ConfigReader, LoadContext], ModelSpec], Mapping[str, Any]]] = {
    "LlamaForCausalLM": (llama, LLAMA_DEFAULTS),
    "MistralForCausalLM": (mistral, MISTRAL_DEFAULTS),
    "Qwen2ForCausalLM": (qwen2, QWEN2_DEFAULTS),
    "Qwen3ForCausalLM": (qwen3, QWEN3_DEFAULTS),
    "Phi3ForCausalLM": (phi3, PHI3_DEFAULTS),
}
