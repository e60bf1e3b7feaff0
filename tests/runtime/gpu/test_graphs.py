"""A replayed graph against the same padded batch run eagerly: bit for bit, whatever the padding holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.support.torch_engine import CONFIGS
from thranite.bench.shapes import LLAMA_8B
from thranite.engine.kv_groups import plan_kv_layout
from thranite.engine.plan import BlockUpdate, Prefill, SlotStart, StepPlan
from thranite.engine.settings import EngineSettings
from thranite.loader.checkpoint import load_model
from thranite.models.registry import load_spec
from thranite.runner.cuda_executor import CudaExecutor
from thranite.runner.cuda_inputs import pack
from thranite.runner.step_shape import StepShape
from thranite.sampling_params import TokenParams

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

BYTES = (0, 3, 127, 255)  # 127: the largest finite numbers; 255: not a number
LENGTHS = [1, 15, 16, 17, 63, 64, 65, 130, 400, 1000, 3, 300, 64]
ROWS, MODEL_LEN = 24, 1100
QWEN: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072,
    "num_hidden_layers": 2, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 4000,
    "max_position_embeddings": MODEL_LEN, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": True,
}  # fmt: skip
LLAMA = {**LLAMA_8B, "num_hidden_layers": 2, "vocab_size": 4000}
MODELS = {"qwen3": QWEN, "llama": LLAMA, "gemma3": {**CONFIGS["gemma3"], "max_position_embeddings": MODEL_LEN}}


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
    plans = graphs._attention.decode_plans(size, torch.device("cuda", 0), {})
    return graphs._forward(size, plans).hidden[:rows].clone()


def poison(executor: CudaExecutor, byte: int, used: int = len(LENGTHS)) -> None:
    """What a padding row may meet: the null page, and the state of slots that no row names, from `used` on."""
    for buffer in executor.cache.buffers:
        buffer[0].fill_(byte)
    state = executor._state
    state.last_tokens[used:] = byte
    state.lengths[used:] = 7 * byte
    for table in state.tables:
        table[used:] = byte


KINDS = [("qwen3", "bfloat16"), ("llama", "bfloat16"), ("gemma3", "float32"), ("gemma3", "bfloat16")]


@pytest.mark.parametrize(("name", "dtype"), KINDS)
def test_a_replay_equals_the_eager_run(name: str, dtype: str) -> None:
    executor = executor_with_prompts(MODELS[name], dtype)
    graphs, lengths = executor._graphs, executor._state.lengths
    assert graphs is not None
    before = lengths.clone()
    for rows in (1, 2, 3, 5, 8, 9, len(LENGTHS)):
        results = []
        for byte in BYTES:
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


SPLITS: list[tuple[int, list[int]]] = [
    (3, [25]), (13, [1]), (13, [51]), (0, [64]), (1, [64, 1]), (3, [520]), (13, [7, 300, 64]), (0, [1000, 23, 1]),
    (5, [1090, 800, 201]),
]  # fmt: skip


def prompts_beside(executor: CudaExecutor, decodes: int, prompts: list[int]) -> StepPlan:
    """The first slots decode, and the slots behind LENGTHS begin prompts on pages that no other has."""
    page = executor.cache.num_blocks
    starts, blocks, prefills = [], [], []
    for slot, length in enumerate(prompts, len(LENGTHS)):
        tokens = [(17 * i + slot) % executor._settings.vocab_size for i in range(length)]
        params = TokenParams(max_tokens=9, seed=1, temperature=0.0)
        starts.append(SlotStart(slot, 0, params, tokens, length, 0))
        prefills.append(Prefill(slot, 0, tokens, (slot,)))
        for group in range(len(executor._state.tables)):
            page -= -(-length // 64)
            blocks.append(BlockUpdate(group, slot, 0, list(range(page, page + -(-length // 64)))))
    return StepPlan(99, decodes=list(range(decodes)), starts=starts, blocks=blocks, prefills=prefills)


@torch.inference_mode()
def eager_mixed(executor: CudaExecutor, plan: StepPlan, shape: StepShape) -> torch.Tensor:
    """Hidden states of the plan's samples, in the padded batch that the graph of `shape` has."""
    graphs, device = executor._mixed, torch.device("cuda", 0)
    assert graphs is not None
    packed = torch.from_numpy(pack(plan, shape))
    graphs._packed[: len(packed)].copy_(packed)
    plans = graphs._attention.decode_plans(shape.decodes, device, {})
    tiles = graphs._attention.prefill_plans(shape.prompts, shape.tokens, device)
    return graphs._forward(shape, plans, tiles).hidden[: len(plan.sample_slots)].clone()


@pytest.mark.parametrize(("name", "dtype"), [("qwen3", "bfloat16"), ("gemma3", "float32"), ("gemma3", "bfloat16")])
def test_a_replay_with_prompts_equals_the_eager_run(name: str, dtype: str) -> None:
    executor = executor_with_prompts(MODELS[name], dtype)
    graphs, lengths = executor._mixed, executor._state.lengths
    assert graphs is not None
    sizes = set()
    for decodes, prompts in SPLITS:
        plan, used = prompts_beside(executor, decodes, prompts), len(LENGTHS) + len(prompts)
        shape = graphs.shape_for(plan)
        assert shape is not None
        sizes.add(shape.tokens)
        results = []
        for byte in BYTES:
            poison(executor, byte, used)
            executor._state.apply(plan.starts, plan.blocks)
            before = lengths.clone()
            results.append(eager_mixed(executor, plan, shape))
            lengths.copy_(before)
            results.append(graphs.run(plan, shape).hidden[: len(plan.sample_slots)].clone())
            before[:decodes] += 1
            before[len(LENGTHS) : used] += torch.tensor(prompts, dtype=torch.int32, device=before.device)
            assert torch.equal(lengths, before)
            lengths[:decodes] -= 1
        assert all(bool(result.isfinite().all()) for result in results)
        assert all(torch.equal(results[0], result) for result in results[1:]), f"{decodes} decodes, prompts {prompts}"
    assert sizes >= {32, 64, 128, 576, 1024, 2560}
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
