"""The file that says a model directory is complete: written last, read first."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from thranite.errors import CheckpointError

NAME = ".thranite-download.json"


@dataclass(frozen=True, slots=True)
class Marker:
    """`revision`: as asked for (None: the default branch); `commit`: what it was then; `files`: name → bytes."""

    model: str
    revision: str | None
    commit: str
    files: Mapping[str, int]

    def write(self, directory: Path) -> None:
        """Appears whole or not at all."""
        work = directory / f"{NAME}.tmp"
        with work.open("w") as file:
            json.dump(asdict(self), file, indent=2, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        os.replace(work, directory / NAME)

    def holds_for(self, directory: Path) -> bool:
        """Whether every file is there with its size."""
        return all(_size(directory / name) == size for name, size in self.files.items())


def read_marker(directory: Path) -> Marker | None:
    path = directory / NAME
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text())
        return Marker(data["model"], data["revision"], data["commit"], dict(data["files"]))
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}", "remove it to download the model again") from error


def remove_marker(directory: Path) -> None:
    (directory / NAME).unlink(missing_ok=True)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
