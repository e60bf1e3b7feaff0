"""Sampling defaults that a checkpoint brings in generation_config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from thranite.errors import CheckpointError

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
    return {ours: config[theirs] for theirs, ours in _NAMES.items() if config.get(theirs) is not None}
