"""A model directory for the null device: a config and a tokenizer, no weights."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.tiny_tokenizers import CHATML, byte_level, save

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 288,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "eos_token_id": 265,
    "dtype": "float32",
}


def model_directory(directory: Path) -> str:
    save(byte_level(), directory, chat_template=CHATML)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    return str(directory)
