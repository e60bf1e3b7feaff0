"""Engines over one tiny random model on the CPU, cheap to make with any settings."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch

from thranite.engine.engine import Engine
from thranite.engine.kv_groups import plan_kv_layout
from thranite.engine.settings import EngineSettings
from thranite.loader.checkpoint import load_model
from thranite.models.decoder import Decoder
from thranite.models.registry import load_spec
from thranite.models.spec import ModelSpec
from thranite.request import EngineRequest, SequenceDelta
from thranite.runner.executor import TorchExecutor

LENGTH = 96

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 131,
    "max_position_embeddings": LENGTH, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
}  # fmt: skip
GEMMA3: dict[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 131,
    "max_position_embeddings": LENGTH, "rms_norm_eps": 1e-6, "sliding_window": 12, "query_pre_attn_scalar": 16,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
}  # fmt: skip
CONFIGS = {"llama": LLAMA, "gemma3": GEMMA3}


@cache
def tiny_model(name: str, dtype: str = "float64") -> tuple[ModelSpec, Decoder]:
    """Weights of standard deviation 0.2 rather than 0.02, so that logits of such a small model are far apart."""
    spec = load_spec(CONFIGS[name], dtype=dtype, max_model_len=LENGTH)
    torch.manual_seed(0)
    model = load_model(
        spec, None, dtype=getattr(torch, dtype), device=torch.device("cpu"), load_format="dummy", progress=None
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10.0)
    return spec, model


def torch_engine(name: str, dtype: str = "float64", *, block_size: int = 4, **changes: Any) -> Engine:
    """An engine over `tiny_model(name)`; `num_blocks` defaults to plenty."""
    spec, model = tiny_model(name, dtype)
    fields: dict[str, Any] = {
        "layout": plan_kv_layout(spec, block_size, dtype),
        "num_blocks": 512 * 4 // block_size + 64,
        "vocab_size": spec.vocab_size,
        "max_model_len": LENGTH,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        "watermark": 0.0,
    }
    settings = EngineSettings(**{**fields, **changes})
    return Engine(settings, TorchExecutor(model, spec, settings, torch.device("cpu")))


def least_blocks(name: str, block_size: int, chunk: int, dtype: str = "float64") -> int:
    """The smallest pool that an engine accepts: one longest sequence and the null page."""
    spec, _ = tiny_model(name, dtype)
    return plan_kv_layout(spec, block_size, dtype).blocks_for(LENGTH, chunk) + 1


def finish(engine: Engine, requests: Iterable[EngineRequest]) -> dict[tuple[str, int], list[SequenceDelta]]:
    """Add all requests at once, run them to the end, and prove that nothing is held."""
    deltas: dict[tuple[str, int], list[SequenceDelta]] = {}
    for request in requests:
        engine.add(request)
    while engine.has_work:
        for delta in engine.step():
            deltas.setdefault((delta.request_id, delta.index), []).append(delta)
    engine.check_integrity()
    assert engine.stats().kv_blocks_used == 0
    return deltas


def tokens(deltas: Iterable[SequenceDelta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]
