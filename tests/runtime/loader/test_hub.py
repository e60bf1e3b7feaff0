"""Model names to directories, without a network."""

from __future__ import annotations

from pathlib import Path

import pytest

from thranite.errors import ModelNotFound
from thranite.loader.hub import resolve_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """A hub cache that holds one revision of one repository."""
    repository = tmp_path / "models--org--tiny"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return tmp_path


def test_a_directory_is_taken_as_it_is(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path)) == tmp_path


def test_offline_takes_the_cache(cached: Path) -> None:
    found = resolve_model("org/tiny", offline=True, cache_dir=cached)
    assert (found / "config.json").is_file()
    assert resolve_model("org/tiny", revision=COMMIT, offline=True, cache_dir=cached) == found


@pytest.mark.parametrize(
    ("model", "revision", "message"),
    [
        ("org/absent", None, "org/absent: LocalEntryNotFoundError"),
        ("org/tiny", "v9", "org/tiny at revision v9"),
        ("a bad name", None, "HFValidationError"),
        ("./models/llama", None, "no directory ./models/llama"),
        ("/models/llama", None, "no directory /models/llama"),
        ("a/b/c", None, "no directory a/b/c"),
    ],
)
def test_not_found_says_what_to_do(cached: Path, model: str, revision: str | None, message: str) -> None:
    with pytest.raises(ModelNotFound, match=message) as caught:
        resolve_model(model, revision=revision, offline=True, cache_dir=cached)
    assert caught.value.hint
