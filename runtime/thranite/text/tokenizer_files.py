"""Finds and reads a tokenizer's files: tokenizer.json, tokenizer_config.json and the chat template beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thranite.errors import CheckpointError, ModelNotFound, UnsupportedModel
from thranite.loader.hub import local_directory

_PATTERNS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.json",
    "*.jinja",
    "generation_config.json",
)
SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What was read, before any tokenizer is built. `templates`: chat templates by name, "default" the usual one."""

    directory: Path
    tokenizer_json: Path
    config: Mapping[str, Any]
    templates: Mapping[str, str]

    @property
    def special_tokens(self) -> dict[str, str]:
        """bos_token, eos_token, … as text; absent ones left out."""
        found = {name: _content(self.config.get(name)) for name in SPECIAL_NAMES}
        return {name: text for name, text in found.items() if text is not None}


def read_tokenizer_files(source: str | Path, revision: str | None = None) -> TokenizerFiles:
    """`source`: a directory, or a hub id whose tokenizer files are fetched (and no others)."""
    directory = local_directory(str(source)) or _download(str(source), revision)
    tokenizer_json = directory / "tokenizer.json"
    if not tokenizer_json.is_file():
        raise UnsupportedModel(
            f"{directory} has no tokenizer.json",
            hint="save the tokenizer once with transformers' AutoTokenizer(...).save_pretrained(directory), "
            "or serve token ids only with --skip-tokenizer-init",
        )
    config = _read_json(directory / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:  # older checkpoints keep special tokens in a file of their own
        config |= _read_json(directory / "special_tokens_map.json")
    return TokenizerFiles(directory, tokenizer_json, config, _read_templates(directory, config))


def _download(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(_PATTERNS)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise ModelNotFound(
            f"no tokenizer at {hub_id!r}: {error}", hint="give a directory, or a hub id this machine can reach"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return value


def _read_templates(directory: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Files of their own win over chat_template.json, and that over tokenizer_config.json."""
    templates = _named(config.get("chat_template")) | _named(
        _read_json(directory / "chat_template.json").get("chat_template")
    )
    if (single := directory / "chat_template.jinja").is_file():
        templates["default"] = single.read_text(encoding="utf-8")
    for path in sorted((directory / "additional_chat_templates").glob("*.jinja")):
        templates[path.stem] = path.read_text(encoding="utf-8")
    return templates


def _named(value: Any) -> dict[str, str]:
    """One template, or a list of {name, template}."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    return {str(item["name"]): str(item["template"]) for item in value}


def _content(value: Any) -> str | None:
    """A special token is its text, or an object that holds it as `content`."""
    text = value.get("content") if isinstance(value, Mapping) else value
    return text if isinstance(text, str) else None
