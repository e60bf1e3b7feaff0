"""Kernels that were compiled ahead (`thranite compile`), brought to where Triton looks for them.

Triton's cache has a folder a kernel. Among its files is one that names the others by their paths, so a folder that is
copied, or mounted elsewhere, must be told its new place. (Triton's own folder must be writable: what was not compiled
ahead goes there.)
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from thranite.errors import ConfigError

GROUP = "__grp__*.json"


def triton_folder() -> Path:
    """Where Triton looks for kernels, and leaves those that it compiles."""
    import triton

    return Path(triton.knobs.cache.dir)


def bring_kernels(source: Path, cache: Path) -> int:
    """Copy each kernel that `cache` lacks; returns how many. Several processes may do it at once.

    Raises ConfigError if there is no such folder.
    """
    if not source.is_dir():
        raise ConfigError(
            f"--kernel-cache {source} is no folder", "name one that `thranite compile --into` filled, or leave it out"
        )
    cache.mkdir(parents=True, exist_ok=True)
    return sum(_bring(folder, cache) for folder in sorted(source.iterdir()) if folder.is_dir())


def _bring(folder: Path, cache: Path) -> bool:
    """Whole or not at all: it gets its name when it is complete."""
    place = cache / folder.name
    if place.exists():
        return False
    with tempfile.TemporaryDirectory(dir=cache, prefix="bringing-") as made:
        copy = Path(made) / folder.name
        shutil.copytree(folder, copy)
        for group in copy.glob(GROUP):
            names = json.loads(group.read_text())["child_paths"]
            group.write_text(json.dumps({"child_paths": {name: str(place / name) for name in names}}))
        try:
            os.rename(copy, place)
        except OSError:
            if not place.exists():
                raise
            return False  # another process was first
    return True
