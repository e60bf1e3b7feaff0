"""From a parsed config.json to a `ModelSpec`. Imports neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from thranite.errors import UnsupportedModel
from thranite.models import gemma, llama
from thranite.models.config_reader import ConfigReader, checkpoint_dtype, merged_token_ids
from thranite.models.shared import LoadContext
from thranite.models.spec import ModelSpec

FAMILIES = {**llama.FAMILIES, **gemma.FAMILIES}
KNOWN_ARCHITECTURES = tuple(sorted(FAMILIES))


def load_spec(
    config: Mapping[str, Any],
    *,
    generation_config: Mapping[str, Any] | None = None,
    max_model_len: int | None = None,
    dtype: str = "auto",
) -> ModelSpec:
    """Read config.json (and generation_config.json, for more EOS ids).

    `max_model_len` fixes what depends on length: longrope's factors, dynamic NTK's base, windows that never bite.
    """
    architecture = find_architecture(config)
    text = text_section(config)
    refuse_quantization(config, text)
    make, defaults = FAMILIES[architecture]
    reader = ConfigReader(text, defaults, architecture)
    sources = [config, text]
    named = [found["eos_token_id"] for found in (generation_config or {}, *sources) if "eos_token_id" in found]
    eos = named or [defaults.get("eos_token_id")]  # a family's is text to a model that names others
    context = LoadContext(architecture, max_model_len, checkpoint_dtype(sources, dtype), merged_token_ids(*eos))
    spec = make(reader, context)
    # Some checkpoints name an end that their vocabulary lacks: nobody can draw it.
    return replace(spec, eos_token_ids=tuple(token for token in spec.eos_token_ids if 0 <= token < spec.vocab_size))


def text_section(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """`text_config` where a model has other parts too; whether the head is tied is then said above it."""
    text = config.get("text_config")
    if text is None:
        return config
    if not isinstance(text, Mapping):
        raise UnsupportedModel(f"config.json: text_config = {text!r}; a section is needed")
    return {**text, **{key: config[key] for key in ("tie_word_embeddings",) if key in config}}


def find_architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures") or []
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise UnsupportedModel(f"config.json: architectures = {names!r}; a list of names is needed")
    for name in names:
        if name in FAMILIES:
            return str(name)
    asked = ", ".join(names) or f"none named (model_type {config.get('model_type')!r})"
    raise UnsupportedModel(f"unknown architecture: {asked}", hint=f"known are {', '.join(KNOWN_ARCHITECTURES)}")


def refuse_quantization(*configs: Mapping[str, Any]) -> None:
    for config in configs:
        for key in ("quantization_config", "compression_config"):
            section = config.get(key)
            if section:
                method = section.get("quant_method", "unnamed") if isinstance(section, Mapping) else section
                raise UnsupportedModel(
                    f"the checkpoint is quantized: {key} names {method!r}",
                    hint="use the unquantized checkpoint of the same model (bfloat16, float16 or float32)",
                )
