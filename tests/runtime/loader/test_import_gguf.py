"""GGUF files become ordinary model directories."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open

from tests.support.smollm2 import smollm2_dir
from thranite.cli.main import main
from thranite.errors import CheckpointError, ConfigError, ExitCode, ModelNotFound, UnsupportedModel
from thranite.loader.import_gguf import dense_tensors, import_gguf


@pytest.mark.model
def test_smollm2_became_a_whole_model_directory() -> None:
    model = smollm2_dir()
    config = json.loads((model / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "bfloat16"
    assert "quantization_config" not in config
    assert "chat_template" in json.loads((model / "tokenizer_config.json").read_text())
    assert (model / "generation_config.json").is_file()
    with safe_open(model / "model.safetensors", "pt") as file:
        names = set(file.keys())
        assert "lm_head.weight" not in names, "tied"
        embedding = file.get_tensor("model.embed_tokens.weight")
    assert len(names) == 272
    assert embedding.shape == (config["vocab_size"], config["hidden_size"])
    assert embedding.dtype == torch.bfloat16
    assert 0.01 < embedding.float().std() < 1.0


@pytest.mark.model
def test_smollm2s_tokenizer_is_whole() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir())
    text = "Hello, wörld 12345 — naïve <|im_start|>\n\tdef f(x): return x"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert isinstance(chat, str)
    assert chat.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")


def test_what_is_not_gguf_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        import_gguf(tmp_path / "absent.gguf", tmp_path / "model")
    (tmp_path / "text.gguf").write_text("GGU?")
    with pytest.raises(CheckpointError, match="not a GGUF file"):
        import_gguf(tmp_path / "text.gguf", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_directory_with_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_text("keep")
    with pytest.raises(ConfigError, match="not empty"):
        import_gguf(tmp_path / "m.gguf", tmp_path / "model")
    assert main(["import-gguf", str(tmp_path / "m.gguf"), "--to", str(tmp_path / "model")]) == ExitCode.CONFIG


def test_a_failed_import_leaves_nothing(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "no-such-architecture")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedModel, match=r"odd\.gguf"):
        import_gguf(tmp_path / "odd.gguf", tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["odd.gguf"]


def test_packed_tensors_are_not_passed_on() -> None:
    state = {"a": torch.zeros(2, 3).T, "lm_head.weight": torch.zeros(1)}
    dense = dense_tensors(state, tied=True, source=Path("m.gguf"))
    assert list(dense) == ["a"]
    assert dense["a"].is_contiguous()
    assert set(dense_tensors(state, tied=False, source=Path("m.gguf"))) == {"a", "lm_head.weight"}
    with pytest.raises(CheckpointError, match="still packed"):
        dense_tensors({"a": torch.zeros(1, dtype=torch.uint8)}, tied=False, source=Path("m.gguf"))
