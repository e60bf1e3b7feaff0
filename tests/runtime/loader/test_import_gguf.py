"""GGUF files become ordinary model directories."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers.convert_slow_tokenizer import bytes_to_unicode

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


HIDDEN, WIDE, HEADS, VOCABULARY = 64, 96, 4, 290
LAYER = {
    "attn_norm.weight": (HIDDEN,), "ffn_norm.weight": (HIDDEN,), "attn_q.weight": (HIDDEN, HIDDEN),
    "attn_k.weight": (HIDDEN, HIDDEN), "attn_v.weight": (HIDDEN, HIDDEN), "attn_output.weight": (HIDDEN, HIDDEN),
    "ffn_gate.weight": (WIDE, HIDDEN), "ffn_up.weight": (WIDE, HIDDEN), "ffn_down.weight": (HIDDEN, WIDE),
}  # fmt: skip


def llama(
    path: Path,
    without: str = "nothing",
    more: Mapping[str, tuple[int, ...]] = {},
    say: Callable[[gguf.GGUFWriter], None] = lambda _: None,
) -> Path:
    """A Llama of two layers. `without`: the beginning of names that are left out; `say`: more of the header."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_block_count(2)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(VOCABULARY)
    tokens = [*bytes_to_unicode().values(), "th", *(f"<{index}>" for index in range(257, VOCABULARY))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 257 + [3] * (VOCABULARY - 257))
    writer.add_token_merges(["t h"])
    writer.add_eos_token_id(VOCABULARY - 1)
    say(writer)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCABULARY, HIDDEN), "output_norm.weight": (HIDDEN,)}
    for index in range(2):
        shapes |= {f"blk.{index}.{name}": shape for name, shape in LAYER.items()}
    drawn = np.random.default_rng(0)
    for name, shape in (shapes | dict(more)).items():
        if not name.startswith(without):
            writer.add_tensor(name, drawn.standard_normal(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_every_tensor_of_the_file_is_in_the_directory(tmp_path: Path) -> None:
    model = import_gguf(llama(tmp_path / "m.gguf"), tmp_path / "model", "float32")
    with safe_open(model / "model.safetensors", "pt") as file:
        assert len(list(file.keys())) == 2 + 2 * len(LAYER)
        assert file.get_tensor("model.layers.1.mlp.up_proj.weight").std() > 0.9


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"without": "blk.1."}, CheckpointError, r"lacks 9 of the model's tensors: model\.layers\.1\."),
        ({"say": lambda writer: writer.add_uint16("split.count", 2)}, UnsupportedModel, "one of 2 files"),
        ({"more": {"rope_freqs.weight": (8,)}}, UnsupportedModel, r"scales positions \(rope_freqs"),
        (
            {"say": lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)},
            UnsupportedModel,
            r"scales positions \(yarn",
        ),
        (
            {"more": {"blk.0.attn_q.bias": (HIDDEN,)}},
            UnsupportedModel,
            r"holds 21 tensors, of which the model takes 20.*attn_q\.bias",
        ),
    ],
    ids=["half", "split", "factors", "yarn", "bias"],
)
def test_what_would_be_passed_over_in_silence_is_refused(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        import_gguf(llama(tmp_path / "m.gguf", **change), tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_a_file_that_is_cut_short_is_no_checkpoint(tmp_path: Path) -> None:
    whole = llama(tmp_path / "whole.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    code = main(["import-gguf", str(tmp_path / "cut.gguf"), "--to", str(tmp_path / "model")])
    assert code == ExitCode.CHECKPOINT


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    source = llama(tmp_path / "m.gguf")
    assert main(["import-gguf", str(source), "--to", str(source)]) == ExitCode.CONFIG


def test_packed_tensors_are_not_passed_on() -> None:
    state = {"a": torch.zeros(2, 3).T, "lm_head.weight": torch.zeros(1)}
    dense = dense_tensors(state, tied=True, source=Path("m.gguf"))
    assert list(dense) == ["a"]
    assert dense["a"].is_contiguous()
    assert set(dense_tensors(state, tied=False, source=Path("m.gguf"))) == {"a", "lm_head.weight"}
    with pytest.raises(CheckpointError, match="still packed"):
        dense_tensors({"a": torch.zeros(1, dtype=torch.uint8)}, tied=False, source=Path("m.gguf"))
