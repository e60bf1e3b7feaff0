"""A model's configuration files, from its directory or the hub, without its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thranite.errors import CheckpointError, ModelNotFound
from thranite.loader.hub import resolve_model

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"


@dataclass(frozen=True, slots=True)
class ModelConfigFiles:
    config: Mapping[str, Any]
    generation_config: Mapping[str, Any] | None


def read_model_config(model: str, revision: str | None) -> ModelConfigFiles:
    """Raises ModelNotFound or CheckpointError."""
    directory = resolve_model(model, revision=revision, weights=False)
    config = _read(directory / CONFIG)
    if config is None:
        raise ModelNotFound(f"{directory} holds no {CONFIG}", "name a model directory or a hub id")
    return ModelConfigFiles(config, _read(directory / GENERATION_CONFIG))


def _read(path: Path) -> Mapping[str, Any] | None:
    """The JSON object in `path`; None if there is no such file."""
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return data
