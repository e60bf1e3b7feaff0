"""The real model of the tests."""

from __future__ import annotations

from pathlib import Path

from dev.fetch_smollm2 import is_present, model_directory


def smollm2_dir() -> Path:
    """SmolLM2-135M-Instruct as a model directory. Fails, and says how to get it, if it was not fetched."""
    directory = model_directory()
    if not is_present(directory):
        raise FileNotFoundError(f"{directory} holds no model; `make model` fetches it")
    return directory
