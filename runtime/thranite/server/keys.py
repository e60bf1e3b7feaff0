"""API keys and their classes: what a caller may ask for besides an answer.

A file holds one key a line, and behind it, after a space, its class (`standard` where none stands):

    # who: the batch jobs of team a
    sk-4f0c…  batch

| class    | `priority` it may send | without the field |
|----------|------------------------|-------------------|
| high     | any                    | 0                 |
| standard | 0 and above            | 0                 |
| batch    | 1 and above            | 1                 |

Lower runs earlier. A server without keys trusts everybody with every priority.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from thranite.errors import ConfigError


class KeyClass(StrEnum):
    HIGH = "high"
    STANDARD = "standard"
    BATCH = "batch"

    @property
    def least_priority(self) -> int | None:
        """The lowest `priority`, which runs earliest, that a request may ask for; None: any."""
        return {KeyClass.HIGH: None, KeyClass.STANDARD: 0, KeyClass.BATCH: 1}[self]


@dataclass(frozen=True, slots=True)
class ApiKey:
    value: str = field(repr=False)
    key_class: KeyClass = KeyClass.STANDARD


def read_api_keys(file: str | None, value: str | None) -> tuple[ApiKey, ...]:
    """Keys from one value (the environment's, of class standard) and from a file. Raises ConfigError."""
    keys = [ApiKey(value.strip())] if value and value.strip() else []
    if file is not None:
        keys += _read_file(file)
    if any(not key.value.isascii() for key in keys):
        raise ConfigError("API keys must be ASCII: HTTP headers carry nothing else")
    return tuple(keys)


def _read_file(file: str) -> list[ApiKey]:
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"--api-key-file {file} cannot be read: {reason}") from error
    found = [
        _parse(line.split(), f"--api-key-file {file}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not found:
        raise ConfigError(f"--api-key-file {file} holds no key", hint="write one key a line")
    return found


def _parse(words: list[str], where: str) -> ApiKey:
    """The line is not shown: it holds a secret."""
    classes = ", ".join(KeyClass)
    if len(words) > 2:
        raise ConfigError(f"{where} must hold a key and at most its class ({classes})")
    try:
        return ApiKey(words[0], KeyClass(words[1]) if len(words) == 2 else KeyClass.STANDARD)
    except ValueError as error:
        raise ConfigError(f"{where}: a key's class must be one of {classes}") from error
