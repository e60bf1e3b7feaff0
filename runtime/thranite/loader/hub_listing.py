"""What a hub repository holds, and which of its files a model directory needs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch

from thranite.errors import CheckpointError, ModelNotFound
from thranite.loader.hub import ALLOWED_FILES, IGNORED_FILES, hub_error


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """`sha256`: known of large files alone."""

    name: str
    size: int
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """One commit of a repository. `files`: those a model directory needs."""

    commit: str
    files: tuple[RemoteFile, ...]


def select_files(names: Iterable[str]) -> list[str]:
    """Weights as safetensors, configuration and tokenizer at the repository's top; no pickles, no code, no folders."""
    return sorted(
        name for name in names if "/" not in name and _any(name, ALLOWED_FILES) and not _any(name, IGNORED_FILES)
    )


def _any(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def list_files(model: str, revision: str | None, token: str | None) -> Listing:
    """Ask the hub. Raises a StartupError that says what was wrong."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(model, revision=revision, files_metadata=True, token=token)
    except Exception as error:
        raise hub_error(error, model, revision) from error
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
    names = select_files(siblings)
    if not any(name.endswith(".safetensors") for name in names):
        raise CheckpointError(f"{model} holds no safetensors", "pickled checkpoints are not read: convert it first")
    if not info.sha:
        raise ModelNotFound(f"the hub names no commit of {model}")
    files = []
    for name in names:
        lfs = siblings[name].lfs
        files.append(RemoteFile(name, int(siblings[name].size or 0), lfs.sha256 if lfs else None))
    return Listing(info.sha, tuple(files))
