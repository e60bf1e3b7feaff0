"""Model directories for engines over several ranks: a config.json alone, with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.processes import children_of

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 131,
    "max_position_embeddings": 512, "torch_dtype": "float32", "eos_token_id": None,
}  # fmt: skip
OPTIONS: dict[str, Any] = {
    "load_format": "dummy", "skip_tokenizer_init": True, "max_num_seqs": 8, "block_size": 16,
    "max_num_batched_tokens": 64,
}  # fmt: skip


def rank_model(directory: Path, **changes: Any) -> str:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG | changes))
    return str(directory)


def rank_pids(engine_pid: int) -> list[int]:
    """The further ranks of a process, in rank order."""
    return children_of(engine_pid, "rank")
