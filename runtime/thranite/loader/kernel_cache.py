"""Kernels that were compiled ahead (`thranite compile`), brought to where Triton looks for them.

Triton's cache has a folder a kernel. Among its files is one that names the others by their paths, so a folder that is
copied, or mounted elsewhere, must be told its new place. (Triton's own folder must be writable: what was not compiled
ahead goes there.)
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from pathlib import Path

from thranite.errors import ConfigError

logger = logging.getLogger(__name__)

GROUP = "__grp__*.json"


def triton_folder() -> Path:
    """Where Triton looks for kernels, and leaves those that it compiles."""
    import triton

    return Path(triton.knobs.cache.dir)


def bring_kernels(source: Path, cache: Path) -> int:
    """Copy each kernel that `cache` lacks; returns how many. Several processes may do it at once.

    What cannot be copied (being written, or not ours to read) is left: the engine compiles it. Raises ConfigError if
    there is no such folder.
    """
    if not source.is_dir():
        raise ConfigError(
            f"--kernel-cache {source} is no folder", "name one that `thranite compile --into` filled, or leave it out"
        )
    cache.mkdir(parents=True, exist_ok=True)
    brought = 0
    for folder in sorted(source.iterdir()):
        try:
            brought += _bring(folder, cache)
        except (OSError, ValueError, KeyError) as error:
            logger.warning("left %s: %s", folder, error)
    return brought


def _bring(folder: Path, cache: Path) -> bool:
    """Whole or not at all: it gets its name when it is complete."""
    place = cache / folder.name
    if place.exists() or not any(folder.glob(GROUP)):  # the group is written last
        return False
    with tempfile.TemporaryDirectory(dir=cache, prefix="bringing-") as made:
        copy = Path(made) / "kernel"
        copy.mkdir()
        for file in folder.iterdir():
            _copy_file(file, copy / file.name, place)
        try:
            os.rename(copy, place)
        except OSError:
            if not place.exists():
                raise
            return False  # another process was first
    return True


def _copy_file(file: Path, copy: Path, place: Path) -> None:
    if not file.match(GROUP):
        shutil.copyfile(file, copy)  # not its mode: it may be read-only
        return
    names = json.loads(file.read_text())["child_paths"]
    copy.write_text(json.dumps({"child_paths": {name: str(place / name) for name in names}}))
