"""Our tokenizer against transformers', which reads the same files."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.support import tiny_tokenizers
from tests.support.fake_engine import tiny_tokenizer
from tests.support.smollm2 import smollm2_dir
from thranite.errors import CheckpointError, ModelNotFound, UnsupportedModel
from thranite.text.detokenizer import Detokenizer
from thranite.text.tokenizer import Tokenizer

TEXTS = ["hello world", " hello", "héllo 日本 🌶️", "", "<|im_start|>user\nhello<|im_end|>", "a<|eos|>b  c\n\n"]


def pair(directory: Path) -> tuple[Tokenizer, Any]:
    return Tokenizer.load(directory), AutoTokenizer.from_pretrained(str(directory))


CASES = {
    "byte-level": (tiny_tokenizers.byte_level, {}),
    "byte-level with bos": (tiny_tokenizers.byte_level, {"add_bos_token": True}),
    "byte-level with both": (tiny_tokenizers.byte_level, {"add_bos_token": True, "add_eos_token": True}),
    "byte-fallback": (tiny_tokenizers.byte_fallback, {}),
    "byte-fallback without bos": (tiny_tokenizers.byte_fallback, {"add_bos_token": False}),
    "special tokens only named": (tiny_tokenizers.byte_level, {"pad_token": "<|pad|>", "eos_token": "lo"}),
    "added tokens": (
        tiny_tokenizers.byte_level,
        {"added_tokens_decoder": {"268": {"content": "<think>", "special": False, "normalized": False}}},
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_ids_and_text_equal_transformers(tmp_path: Path, case: tuple[Any, dict[str, Any]]) -> None:
    build, config = case
    ours, theirs = pair(tiny_tokenizers.save(build(), tmp_path, **config))
    for text in (*TEXTS, "<think>hm</think>", "lo<|pad|>"):
        for special in (True, False):
            ids = ours.encode(text, add_special_tokens=special)
            assert ids == theirs.encode(text, add_special_tokens=special)
            for skip in (True, False):
                assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert ours.vocab_size == len(theirs)


@pytest.mark.model
def test_a_real_model_s_ids_and_prompts_equal_transformers() -> None:
    directory = smollm2_dir()
    ours, theirs = pair(directory)
    text = Path(__file__).read_text(encoding="utf-8") + "".join(TEXTS)
    ids = ours.encode(text)
    assert ids == theirs.encode(text)
    assert ours.decode(ids, skip_special_tokens=False) == text
    assert b"".join(map(ours.token_bytes, ids)) == text.encode()
    detokenizer = Detokenizer(ours, [], skip_special_tokens=False)
    assert "".join([*map(detokenizer.step, ids), detokenizer.flush()]) == text
    chat = [{"role": role, "content": f"{role} speaks"} for role in ("system", "user", "assistant", "user")]
    assert ours.apply_chat_template(chat) == theirs.apply_chat_template(
        chat, add_generation_prompt=True, return_dict=False
    )


def test_truncation_and_padding_of_the_file_are_off(tmp_path: Path) -> None:
    rust = tiny_tokenizers.byte_level()
    rust.enable_truncation(2)
    rust.enable_padding(length=64)
    tokenizer = Tokenizer.load(tiny_tokenizers.save(rust, tmp_path))
    assert tokenizer.decode(tokenizer.encode("hello world")) == "hello world"
    assert len(tokenizer.encode("xyz")) == 3


def test_token_bytes_keep_spaces_and_parts_of_characters() -> None:
    level, fallback = Tokenizer(tiny_tokenizers.byte_level()), Tokenizer(tiny_tokenizers.byte_fallback())
    for tokenizer in (level, fallback):
        ids = tokenizer.encode("hello hé 日", add_special_tokens=False)
        assert b"".join(map(tokenizer.token_bytes, ids)).lstrip() == "hello hé 日".encode()
    assert level.token_bytes(level.encode("<|eos|>")[0]) == b"<|eos|>"
    assert fallback.token_bytes(fallback.rust.token_to_id("▁he") or 0) == b" he"
    assert level.token_bytes(10_000) == b""


def test_many_threads_may_use_one_tokenizer() -> None:
    tokenizer = tiny_tokenizer()
    texts = [f"hello {number} é" * 50 for number in range(200)]

    def work(text: str) -> tuple[str, list[int]]:
        chat = [{"role": "user", "content": text}]
        return tokenizer.decode(tokenizer.encode(text)), tokenizer.apply_chat_template(chat)

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(work, texts))
    assert found == [work(text) for text in texts]
    assert [text for text, _ in found] == texts


def test_a_directory_without_tokenizer_json_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="save_pretrained"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_broken_files_are_named(tmp_path: Path, name: str) -> None:
    tiny_tokenizers.save(tiny_tokenizers.byte_level(), tmp_path)
    (tmp_path / name).write_text("{")
    with pytest.raises(CheckpointError, match=name):
        Tokenizer.load(tmp_path)


def test_a_path_is_understood_as_the_model_s_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tiny_tokenizers.save(tiny_tokenizers.byte_level(), tmp_path / "model")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Tokenizer.load("~/model").encode("a")
    with pytest.raises(ModelNotFound, match="no directory ~/elsewhere"):
        Tokenizer.load("~/elsewhere")


def test_a_missing_hub_id_is_model_not_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFound, match="nobody/nothing"):
        Tokenizer.load("nobody/nothing")


def test_older_config_spellings(tmp_path: Path) -> None:
    """Special tokens in special_tokens_map.json, as text or with their flags."""
    tiny_tokenizers.save(tiny_tokenizers.byte_level(), tmp_path)
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    special = {"eos_token": {"content": "<|im_end|>", **flags}, "bos_token": "<|im_start|>"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
    ours, theirs = pair(tmp_path)
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert ours.eos_token_id == ours.rust.token_to_id("<|im_end|>")


@pytest.mark.parametrize("build", [tiny_tokenizers.byte_level, tiny_tokenizers.byte_fallback])
def test_no_token_is_more_characters_than_it_says(build: Any) -> None:
    tokenizer = Tokenizer(build())
    for text in (*TEXTS, "lo" * 50, " " * 50):
        assert len(text) <= tokenizer.most_characters * len(tokenizer.encode(text, add_special_tokens=False))


def test_other_threads_run_while_a_text_becomes_tokens_and_back() -> None:
    tokenizer = tiny_tokenizer()
    text = "hello world, this is a text " * 20_000
    with ThreadPoolExecutor(1) as pool:
        for work in (lambda: tokenizer.encode(text), lambda: tokenizer.decode([5, 6, 7] * 300_000)):
            ticks, done = 0, pool.submit(work)
            while not done.done():
                time.sleep(0.001)
                ticks += 1
            assert ticks > 10
