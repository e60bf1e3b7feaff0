"""Tiny random transformers models of every architecture the runtime knows, with its quirks switched on.

Windows are smaller than the prompts, prompts are longer than ropes' original lengths, head_dim differs from
hidden / heads where the family allows it, and weights are large enough that greedy continuations do not repeat at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

BASE: Mapping[str, Any] = {
    "vocab_size": 199,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LONG = [1.0 + 0.4 * i for i in range(8)]
SHORT = [1.0 + 0.1 * i for i in range(8)]
GEMMA: Mapping[str, Any] = {
    **BASE,
    "head_dim": 16,
    "query_pre_attn_scalar": 24,
    "sliding_window": 12,
    "num_hidden_layers": 4,
}


@dataclass(frozen=True)
class TinyModel:
    """`options` of transformers' `config_class`; `max_model_len` picks the length-dependent rope's regime.

    `rewrite` edits the saved config.json (old spellings).
    """

    architecture: str
    config_class: str
    options: Mapping[str, Any]
    max_model_len: int | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    rewrite: Callable[[dict[str, Any]], None] | None = None


def rope(kind: str, **parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **parameters}}


def old_spelling(config: dict[str, Any]) -> None:
    """As transformers 4 wrote it: rope_theta, rope_scaling and torch_dtype at the top."""
    parameters = dict(config.pop("rope_parameters"))
    config["rope_theta"] = parameters.pop("rope_theta")
    kind = parameters.pop("rope_type")
    partial = parameters.pop("partial_rotary_factor", None)
    if partial is not None:
        config["partial_rotary_factor"] = partial
    original = parameters.pop("original_max_position_embeddings", None)
    if kind == "longrope":
        config["original_max_position_embeddings"] = original
    elif original is not None:
        parameters["original_max_position_embeddings"] = original
    config["rope_scaling"] = None if kind == "default" else {"type": kind, **parameters}
    config["torch_dtype"] = config.pop("dtype")


def old_gemma3(config: dict[str, Any]) -> None:
    """As transformers 4 wrote Gemma3: two thetas, rope_scaling for the global layers, a pattern for layer types."""
    text = config.get("text_config", config)
    parameters = text.pop("rope_parameters")
    text["rope_theta"] = parameters["full_attention"].pop("rope_theta")
    text["rope_local_base_freq"] = parameters["sliding_attention"]["rope_theta"]
    scaling = parameters["full_attention"]
    text["rope_scaling"] = None if scaling["rope_type"] == "default" else scaling
    text.pop("layer_types")
    text["sliding_window_pattern"] = 3
    config["torch_dtype"] = config.pop("dtype")


LLAMA3 = rope("llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=32)
LONGROPE = rope("longrope", long_factor=LONG[:4], short_factor=SHORT[:4], partial_rotary_factor=0.5,
                original_max_position_embeddings=32)  # fmt: skip
PHI3_LONG: Mapping[str, Any] = {
    **BASE,
    **LONGROPE,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "original_max_position_embeddings": 32,
}
GEMMA3_ROPES = {
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    }
}
GEMMA3 = {**GEMMA, **GEMMA3_ROPES, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
          "num_hidden_layers": 6}  # fmt: skip


def llama(**options: Any) -> TinyModel:
    tweaks = {k: options.pop(k) for k in ("max_model_len", "generation", "rewrite") if k in options}
    return TinyModel("LlamaForCausalLM", "LlamaConfig", {**BASE, **options}, **tweaks)


TINY_MODELS: Mapping[str, TinyModel] = {
    "llama": llama(generation={"eos_token_id": [2, 5]}),
    "llama-biased-tied": llama(attention_bias=True, mlp_bias=True, tie_word_embeddings=True, head_dim=16),
    "llama-mha": llama(num_key_value_heads=6, hidden_act="gelu"),
    "llama-linear": llama(**rope("linear", factor=2.0)),
    "llama-llama3": llama(**LLAMA3),
    "llama-llama3-old": llama(**LLAMA3, rewrite=old_spelling, eos_token_id=[2, 3, 4]),
    "llama-yarn": llama(**YARN),
    "llama-yarn-old": llama(**YARN, rewrite=old_spelling),
    "llama-dynamic": llama(**rope("dynamic", factor=2.0), max_position_embeddings=32, max_model_len=128),
    "mistral": TinyModel("MistralForCausalLM", "MistralConfig", {**BASE, "sliding_window": 12, "head_dim": 16}),
    "mistral-full": TinyModel("MistralForCausalLM", "MistralConfig", {**BASE, "sliding_window": None}),
    "qwen2": TinyModel(
        "Qwen2ForCausalLM",
        "Qwen2Config",
        {**BASE, "use_sliding_window": True, "sliding_window": 10, "max_window_layers": 1, "tie_word_embeddings": True},
    ),
    "qwen2-full": TinyModel("Qwen2ForCausalLM", "Qwen2Config", {**BASE, "sliding_window": 10, **YARN}),
    "qwen3": TinyModel("Qwen3ForCausalLM", "Qwen3Config", {**BASE, "head_dim": 16, "attention_bias": True}),
    "qwen3-mixed": TinyModel(
        "Qwen3ForCausalLM",
        "Qwen3Config",
        {
            **BASE,
            "head_dim": 16,
            "use_sliding_window": True,
            "sliding_window": 9,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "tie_word_embeddings": True,
        },
    ),
    "gemma2": TinyModel(
        "Gemma2ForCausalLM",
        "Gemma2Config",
        {**GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0, "attention_bias": True},
    ),
    "gemma3": TinyModel(
        "Gemma3ForCausalLM", "Gemma3TextConfig", {**GEMMA3, "eos_token_id": [1, 7], "final_logit_softcapping": 4.0}
    ),
    "gemma3-old": TinyModel("Gemma3ForCausalLM", "Gemma3TextConfig", GEMMA3, rewrite=old_gemma3),
    "phi3": TinyModel(
        "Phi3ForCausalLM", "Phi3Config", {**BASE, "sliding_window": 14, "original_max_position_embeddings": 256}
    ),
    "phi3-long": TinyModel("Phi3ForCausalLM", "Phi3Config", PHI3_LONG),
    "phi3-long-old": TinyModel("Phi3ForCausalLM", "Phi3Config", PHI3_LONG, rewrite=old_spelling),
    "phi3-short": TinyModel("Phi3ForCausalLM", "Phi3Config", PHI3_LONG, max_model_len=32),
}


def build(model: TinyModel, seed: int = 0) -> Any:
    """The transformers model in fp32 with eager attention, its norms and biases drawn too."""
    torch.manual_seed(seed)
    config = getattr(transformers, model.config_class)(**model.options)
    config.architectures = [model.architecture]
    config._attn_implementation = "eager"
    reference = getattr(transformers, model.architecture)(config).eval()
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            elif name.endswith("bias"):
                parameter.normal_(std=0.3)
            else:
                parameter.normal_(std=0.15)
    return reference


def save(model: TinyModel, reference: Any, directory: Path) -> Path:
    """An ordinary model directory."""
    directory.mkdir(parents=True, exist_ok=True)
    reference.save_pretrained(directory)
    path = directory / "config.json"
    config = json.loads(path.read_text())
    if model.rewrite is not None:
        model.rewrite(config)
    path.write_text(json.dumps(config))
    (directory / "generation_config.json").write_text(json.dumps(dict(model.generation)))
    return directory
