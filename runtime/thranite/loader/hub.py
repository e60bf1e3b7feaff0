"""A model's name to a local directory: the directory itself, or a hub repository's snapshot."""

from __future__ import annotations

from pathlib import Path

from thranite.errors import ModelNotFound, StartupError

# Weights, configuration, tokenizer, chat templates. Never pickles, never code.
ALLOWED_FILES = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "tokenizer.model",
    "tokenizer.model.v*",
    "*.tiktoken",
    "vocab.txt",
    "merges.txt",
)
IGNORED_FILES = ("original/*", "consolidated*.safetensors", "onnx/*", "openvino/*")


class HubUnreachable(StartupError):
    """The hub could not be asked, or broke off: asking again may help."""


def resolve_model(
    model: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
    weights: bool = True,
    cache_dir: Path | None = None,
) -> Path:
    """`model` if it is a directory, else a snapshot of the hub repository of that name, downloaded with progress bars.

    `offline`: take what the cache has. HF_TOKEN, HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE are honoured.
    `weights`: False fetches configuration and tokenizer alone.
    """
    if (path := local_directory(model)) is not None:
        return path
    allowed = [name for name in ALLOWED_FILES if weights or not name.endswith(".safetensors")]
    return download_snapshot(model, revision, token, offline, allowed, cache_dir)


def local_directory(model: str) -> Path | None:
    """The directory that `model` names; None for a hub id. Raises ModelNotFound for a path that leads nowhere."""
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if looks_like_path(model):
        raise ModelNotFound(f"no directory {model}", hint="give a directory with a config.json, or a hub id (org/name)")
    return None


def looks_like_path(model: str) -> bool:
    """Hub ids have one slash at most and start with a letter or digit."""
    return model.startswith(("/", ".", "~")) or model.count("/") > 1


def download_snapshot(
    model: str, revision: str | None, token: str | None, offline: bool, allowed: list[str], cache_dir: Path | None
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(
            snapshot_download(
                model,
                revision=revision,
                token=token,
                local_files_only=offline,
                allow_patterns=allowed,
                ignore_patterns=list(IGNORED_FILES),
                cache_dir=cache_dir,
            )
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise hub_error(error, model, revision, offline) from error


def hub_error(error: Exception, model: str, revision: str | None, offline: bool = False) -> StartupError:
    """The hub client's errors in this project's words: HubUnreachable if another try may help. `offline`: it was not to
    be asked."""
    from huggingface_hub import constants, errors

    if isinstance(error, StartupError):
        return error
    message, hint = f"{model}{at(revision)}: {reason(error)}", hint_for(error, model)
    final = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return ModelNotFound(message, "HF_HUB_OFFLINE forbids asking the hub")
    if isinstance(error, errors.LocalEntryNotFoundError) and (offline or constants.HF_HUB_OFFLINE):
        return ModelNotFound(message, hint)
    return ModelNotFound(message, hint) if isinstance(error, final) else HubUnreachable(message, hint)


def at(revision: str | None) -> str:
    return "" if revision is None else f" at revision {revision}"


def reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def hint_for(error: Exception, model: str) -> str:
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        return f"accept the terms on the page of {model}, then set HF_TOKEN to a token of that account"
    if isinstance(error, RevisionNotFoundError):
        return "the repository has no such branch, tag or commit"
    if isinstance(error, RepositoryNotFoundError):
        return "check the spelling (organisation/name); a private repository needs HF_TOKEN"
    if isinstance(error, HFValidationError):
        return "give an existing directory, or a hub id (organisation/name)"
    if isinstance(error, LocalEntryNotFoundError):
        return "nothing usable in the cache and no connection: allow downloads, or give a directory"
    return "check the network and the disk, or download the model elsewhere and give its directory"
