"""`thranite serve` on the null device, with a model that is a config and a tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serve_process import Server, served
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

VOCAB = 4000
EOS = VOCAB - 1
MODEL = "null"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "eos_token_id": EOS,
    "dtype": "float32",
}


def write_tokenizer(directory: Path, vocab: int, eos: int) -> None:
    """Of characters and words: every token is a text of its own, so each makes an event."""
    words = {chr(code): code - 33 for code in range(33, 127)}
    words |= {f"w{number}": number for number in range(len(words), vocab)}
    tokenizer = Tokenizer(models.BPE(words, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": f"w{eos}"}))


def write_model(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    write_tokenizer(directory, VOCAB, EOS)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    return directory


@contextmanager
def null_server(directory: Path, *options: str) -> Iterator[Server]:
    """Started with `options` besides; ready."""
    with served(write_model(directory / "model"), MODEL, directory, ["--device", "null", *options]) as server:
        yield server
