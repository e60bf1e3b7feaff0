"""A replayed decode graph against the same padded batch run eagerly: bit for bit, whatever the padding holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.support.torch_engine import CONFIGS
from thranite.engine.kv_groups import plan_kv_layout
from thranite.engine.plan import BlockUpdate, Prefill, SlotStart, StepPlan
from thranite.engine.settings import EngineSettings
from thranite.loader.checkpoint import load_model
from thranite.models.registry import load_spec
from thranite.runner.cuda_executor import CudaExecutor
from thranite.sampling_params import TokenParams

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

LENGTHS = [1, 15, 16, 17, 63, 64, 65, 130, 400, 1000, 3, 300, 64]
ROWS, MODEL_LEN = 24, 1100
QWEN: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072,
    "num_hidden_layers": 2, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 4000,
    "max_position_embeddings": MODEL_LEN, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": True,
}  # fmt: skip
MODELS = {"qwen3": QWEN, "gemma3": {**CONFIGS["gemma3"], "max_position_embeddings": MODEL_LEN}}


def executor_with_prompts(config: dict[str, Any], dtype: str) -> CudaExecutor:
    """Captured, and with a prompt of each length behind it, in slot 0, 1, …"""
    device = torch.device("cuda", 0)
    spec = load_spec(config, dtype=dtype, max_model_len=MODEL_LEN)
    settings = EngineSettings(
        layout=plan_kv_layout(spec, 64, dtype),
        num_blocks=1 + len(spec.layers) * len(LENGTHS) * 18,
        vocab_size=spec.vocab_size,
        max_model_len=MODEL_LEN,
        max_num_seqs=ROWS,
        max_num_batched_tokens=4096,
    )
    weights = {"dtype": getattr(torch, dtype), "device": device, "load_format": "dummy", "progress": None}
    executor = CudaExecutor(load_model(spec, None, **weights), spec, settings, device, 16)
    executor.capture()
    page = 1
    params = TokenParams(max_tokens=9, seed=1, temperature=0.8)
    for slot, length in enumerate(LENGTHS):
        blocks = []
        for group in range(len(settings.layout.groups)):
            count = -(-(length + 2) // 64)
            blocks.append(BlockUpdate(group, slot, 0, list(range(page, page + count))))
            page += count
        tokens = [(31 * i + slot) % spec.vocab_size for i in range(length)]
        start = SlotStart(slot, 0, params, tokens, length, 0)
        executor.launch(StepPlan(slot, starts=[start], blocks=blocks, prefills=[Prefill(slot, 0, tokens, (slot,))]))
        executor.sample({})
        executor.collect()
    return executor


@torch.inference_mode()
def eager(executor: CudaExecutor, rows: int) -> torch.Tensor:
    """Hidden states of slots 0 … rows - 1, in the padded batch that the graphs would take for them."""
    graphs = executor._graphs
    assert graphs is not None
    size = next(size for size in graphs._sizes if size >= rows)
    padded = [*range(rows), *[-1] * (size - rows)]
    graphs._slots[:size].copy_(torch.from_numpy(np.asarray(padded, np.int32)))
    graphs._present = padded
    plans = graphs._attention.decode_plans(size, torch.device("cuda", 0), None)
    return graphs._forward(size, plans).hidden[:rows].clone()


def poison(executor: CudaExecutor, byte: int) -> None:
    """What a padding row may meet: the null page, and the state of slots that no row names."""
    for buffer in executor.cache.buffers:
        buffer[0].fill_(byte)
    state = executor._state
    state.last_tokens[len(LENGTHS) :] = byte
    state.lengths[len(LENGTHS) :] = 7 * byte
    for table in state.tables:
        table[len(LENGTHS) :] = byte


@pytest.mark.parametrize(("name", "dtype"), [("qwen3", "bfloat16"), ("gemma3", "float32"), ("gemma3", "bfloat16")])
def test_a_replay_equals_the_eager_run(name: str, dtype: str) -> None:
    executor = executor_with_prompts(MODELS[name], dtype)
    graphs, lengths = executor._graphs, executor._state.lengths
    assert graphs is not None
    before = lengths.clone()
    for rows in (1, 2, 3, 5, 8, 9, len(LENGTHS)):
        results = []
        for byte in (0, 3, 127):  # 127: the largest finite numbers
            poison(executor, byte)
            before[len(LENGTHS) :] = lengths[len(LENGTHS) :]
            results.append(eager(executor, rows))
            lengths.copy_(before)
            graphs._present = []
            results.append(graphs.run(list(range(rows))).hidden[:rows].clone())
            lengths.copy_(before)
        assert all(bool(result.isfinite().all()) for result in results)
        assert all(torch.equal(results[0], result) for result in results[1:]), f"{rows} rows"
        assert not torch.equal(results[0][0], results[0][-1]) or rows == 1
    executor.close()


def test_steps_with_few_prompt_tokens_run_as_graphs() -> None:
    """A prompt beside decodes: the graph's tokens are those of the same step run eagerly."""
    tokens = []
    for mixed in (True, False):
        executor = executor_with_prompts(MODELS["gemma3"], "float32")
        graphs = executor._mixed
        assert graphs is not None
        rows = len(LENGTHS)
        start = SlotStart(rows, 0, TokenParams(max_tokens=9, seed=1, temperature=0.0), list(range(50)), 50, 0)
        last = executor.cache.num_blocks - 1  # pages that no other slot has
        blocks = [BlockUpdate(group, rows, 0, [last - group]) for group in range(len(executor._state.tables))]
        prefill = Prefill(rows, 0, list(range(50)), (rows,))
        plan = StepPlan(99, decodes=list(range(rows)), starts=[start], blocks=blocks, prefills=[prefill])
        assert graphs.shape_for(plan) is not None
        if mixed:
            executor.launch(plan)
        else:
            executor._launch(plan, None)
        executor.sample({})
        tokens.append(executor.collect().tokens)
        executor.close()
    assert len(tokens[0]) == len(LENGTHS) + 1
    assert tokens[0] == tokens[1]
