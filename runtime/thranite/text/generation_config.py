"""Sampling defaults that a checkpoint brings in generation_config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args

from thranite.errors import CheckpointError, ConfigError, InvalidRequest
from thranite.loader.hub import resolve_model
from thranite.sampling_params import SamplingParams

GenerationConfig = Literal["auto", "none"]

# generation_config.json's name → SamplingParams' name
_NAMES = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}


def sampling_defaults(directory: str | Path) -> dict[str, Any]:
    """SamplingParams fields that the model's authors recommend; {} without the file."""
    path = Path(directory) / "generation_config.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return {ours: config[theirs] for theirs, ours in _NAMES.items() if config.get(theirs) is not None}


def read_default_sampling(mode: GenerationConfig, model: str, revision: str | None = None) -> dict[str, Any]:
    """`auto` takes what the authors of a directory's or the hub's model recommend, `none` nothing."""
    if mode not in get_args(GenerationConfig):
        raise ConfigError(f"--generation-config must be one of {', '.join(get_args(GenerationConfig))}; got {mode!r}")
    if mode == "none":
        return {}
    defaults = sampling_defaults(resolve_model(model, revision=revision, weights=False))
    try:
        SamplingParams(**defaults)
    except InvalidRequest as error:
        raise ConfigError(
            f"the model's generation_config.json holds what cannot be served: {error}", hint="--generation-config none"
        ) from error
    return defaults
