"""Model names to directories, without a network."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from thranite.errors import ExitCode, ModelNotFound
from thranite.loader.hub import HubUnreachable, resolve_model

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


def test_a_hub_that_does_not_answer_is_no_missing_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may answer the next time: a Job must not give up for good."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{port}")
    with pytest.raises(HubUnreachable, match="org/absent") as caught:
        resolve_model("org/absent", cache_dir=tmp_path)
    assert caught.value.exit_code == ExitCode.FAILURE


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
