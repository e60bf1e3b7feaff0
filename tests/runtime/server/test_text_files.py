"""What a server process reads before it is ready, so that no request has to wait for it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import llguidance
import pytest

from tests.support.tiny_tokenizers import CHATML, EOS, byte_level, save
from tests.support.torch_engine import LLAMA
from thranite.config import EngineConfig
from thranite.sampling_params import StructuredOutputsParams
from thranite.server.text_files import load_first_tokenizer, load_tokenizer
from thranite.text.grammar import checked_source

WANTED = StructuredOutputsParams(regex="a+")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of each vocabulary that was read."""
    sizes: list[int] = []
    real = llguidance.LLTokenizer

    def make(*arguments: Any, **options: Any) -> Any:
        sizes.append(options["n_vocab"])
        return real(*arguments, **options)

    monkeypatch.setattr(llguidance, "LLTokenizer", make)
    return sizes


def model(directory: Path, **changes: Any) -> str:
    tokenizer = byte_level()
    config = {**LLAMA, "vocab_size": 300, "eos_token_id": tokenizer.token_to_id(EOS), **changes}
    save(tokenizer, directory / "model")
    (directory / "model" / "config.json").write_text(json.dumps(config))
    return str(directory / "model")


def test_the_vocabulary_is_read_with_the_tokenizer(tmp_path: Path, read: list[int]) -> None:
    tokenizer = load_first_tokenizer(EngineConfig(model=model(tmp_path)))
    assert read == [300]
    eos = byte_level().token_to_id(EOS)
    assert tokenizer is not None
    assert eos is not None
    assert load_tokenizer(EngineConfig(model=model(tmp_path / "added"))) is not None  # beside streams
    assert read == [300]
    for used in (tokenizer, tokenizer.with_chat_template(CHATML)):
        checked_source(WANTED, used, 300, [eos])
    assert read == [300]


def test_a_model_that_cannot_follow_grammars_is_served_all_the_same(
    tmp_path: Path, read: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    endless = model(tmp_path, eos_token_id=None)
    (Path(endless) / "tokenizer_config.json").write_text("{}")
    with caplog.at_level(logging.WARNING):
        assert load_first_tokenizer(EngineConfig(model=endless)) is not None
    assert "structured output is not available: this model names no end-of-text token" in caplog.text
    assert read == []


def test_the_engine_reports_what_is_wrong_with_its_own_files(tmp_path: Path, read: list[int]) -> None:
    directory = model(tmp_path, architectures=["Unheard"])
    assert load_first_tokenizer(EngineConfig(model=directory)) is not None
    (Path(directory) / "config.json").unlink()
    assert load_first_tokenizer(EngineConfig(model=directory)) is not None
    assert read == []
