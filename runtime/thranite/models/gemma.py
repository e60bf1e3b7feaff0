"""Gemma 2 and 3: sandwich norms, scaled embeddings, alternating windows, softcaps (2), head norms and two ropes (3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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

GEMMA2_DEFAULTS: dict[str, Any] = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
}
GEMMA3_DEFAULTS: dict[str, Any] = GEMMA2_DEFAULTS | {
    "vocab_size": 262_208,
    "max_position_embeddings": 131_072,
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
    "sliding_window_pattern": 6,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
}


def gemma2(config: ConfigReader, context: LoadContext) -> ModelSpec:
    rope = make_rope(config, context, whole_heads(config, rope_parameters(config)))
    types = layer_types(config, _pattern(config, 2))
    softcap = config.optional_number("attn_logit_softcapping")
    layers = _layers(config, context, types, [0] * len(types), softcap, qk_norm=False)
    return make_spec(config, context, layers, [rope], **_traits(config))


def gemma3(config: ConfigReader, context: LoadContext) -> ModelSpec:
    config.refuse("attn_logit_softcapping", "Gemma3's attention has no softcap")
    types = layer_types(config, _pattern(config, config.integer("sliding_window_pattern")))
    ropes = [make_rope(config, context, whole_heads(config, p)) for p in _rope_pair(config)]
    layers = _layers(config, context, types, [int(t == SLIDING) for t in types], None, qk_norm=True)
    return make_spec(config, context, layers, ropes, **_traits(config))


def _rope_pair(config: ConfigReader) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters of full and of sliding layers. `rope_scaling` (old spelling) speaks of the full layers alone."""
    nested = config.section("rope_parameters")
    if set(nested) - {FULL, SLIDING} or not all(isinstance(part, Mapping | None) for part in nested.values()):
        raise config.unsupported("rope_parameters", f"a section each for {FULL} and {SLIDING} is needed")
    full = {"rope_theta": config.get("rope_theta"), **(nested.get(FULL) or {}), **config.section("rope_scaling")}
    local = {"rope_theta": config.get("rope_local_base_freq"), **(nested.get(SLIDING) or {})}
    return full, local


def _pattern(config: ConfigReader, period: int) -> list[str]:
    """Every `period`-th layer sees everything."""
    return [FULL if (i + 1) % period == 0 else SLIDING for i in range(config.integer("num_hidden_layers"))]


def _traits(config: ConfigReader) -> dict[str, Any]:
    config.refuse("use_bidirectional_attention", "text is generated causally")
    softcap = config.optional_number("final_logit_softcapping")
    return {"activation": "hidden_activation", "gemma": True, "final_softcap": softcap}


def _layers(
    config: ConfigReader,
    context: LoadContext,
    types: Sequence[str],
    ropes: Sequence[int],
    softcap: float | None,
    qk_norm: bool,
) -> list[LayerSpec]:
    biased = config.flag("attention_bias")
    window = config.optional_integer("sliding_window")
    return [
        LayerSpec(
            num_heads=config.integer("num_attention_heads"),
            num_kv_heads=kv_heads(config),
            head_dim=head_dim(config),
            rope=rope,
            window=visible,
            intermediate_size=config.integer("intermediate_size"),
            scale=config.positive("query_pre_attn_scalar") ** -0.5,
            softcap=softcap,
            qkv_bias=biased,
            out_bias=biased,
            mlp_bias=False,
            qk_norm=qk_norm,
        )
        for visible, rope in zip(windows(types, window, longest(config, context)), ropes, strict=True)
    ]


FAMILIES: Mapping[str, tuple[Callable[[ConfigReader, LoadContext], ModelSpec], Mapping[str, Any]]] = {
    "Gemma2ForCausalLM": (gemma2, GEMMA2_DEFAULTS),
    "Gemma3ForCausalLM": (gemma3, GEMMA3_DEFAULTS),
    "Gemma3ForConditionalGeneration": (gemma3, GEMMA3_DEFAULTS),
}
