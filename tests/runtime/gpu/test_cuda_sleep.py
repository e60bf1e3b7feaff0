"""Sleep on a GPU: its memory is given back, graphs are captured again, and the same tokens come out."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.runtime.gpu.test_cuda_engine import engine_on, workload
from tests.support.rank_models import rank_model
from tests.support.torch_engine import finish, tokens
from thranite import LLM, SamplingParams
from thranite.attention.base import KVCache
from thranite.bench.shapes import QWEN3_06B
from thranite.engine.engine import Engine
from thranite.engine.kv_groups import plan_kv_layout
from thranite.errors import DoesNotFit, Rejected
from thranite.layers.embedding import Embedding
from thranite.models.registry import load_spec

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

GIB = 1 << 30
# A buffer of pages has 32 MiB or more. torch gives back whole segments alone, and one of 20 MiB holds all that has less
# than 10, whoever needs it.
BLOCKS = 16_384
PROMPTS = [{"prompt_token_ids": [(7 * i * i + 3 * i + j) % 2000 for i in range(20 + 40 * j)]} for j in range(5)]
GREEDY = SamplingParams(max_tokens=64, temperature=0.0, ignore_eos=True)


def give_back_what_is_cached() -> None:
    """Of earlier tests: pages that took a part of a segment would share it."""
    gc.collect()
    torch.cuda.empty_cache()


def outputs(engine: Engine) -> dict[tuple[str, int], list[int]]:
    return {key: tokens(deltas) for key, deltas in finish(engine, workload()).items()}


@pytest.mark.parametrize("changes", [{}, {"overlap": True}, {"eager": True}], ids=["graphs", "overlap", "eager"])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_the_same_tokens_before_and_after(name: str, changes: dict[str, Any]) -> None:
    give_back_what_is_cached()
    engine = engine_on("cuda", name, num_blocks=BLOCKS, enable_prefix_caching=False, **changes)
    before = outputs(engine)
    assert outputs(engine) == before, "the workload alone does not repeat"
    executor: Any = engine._executor
    for _ in range(3):
        held = torch.cuda.memory_allocated()
        assert engine.sleep() >= executor.cache.num_bytes
        weights = sum(p.numel() * p.element_size() for p in executor._model.parameters())
        assert held - torch.cuda.memory_allocated() >= executor.cache.num_bytes + weights * 0.9
        with pytest.raises(Rejected):
            engine.add(workload()[0])
        assert engine.wake() == 0
        assert outputs(engine) == before
        assert torch.cuda.memory_allocated() <= held * 1.02 + 2**20, "memory grows with every sleep"
    engine.close()


def test_it_sleeps_on_where_memory_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    give_back_what_is_cached()
    engine = engine_on("cuda", "llama", num_blocks=BLOCKS)
    before = outputs(engine)
    freed = engine.sleep()
    with monkeypatch.context() as patched:
        patched.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 80 * GIB))
        assert engine.wake() == freed - 1000
    with pytest.raises(Rejected):
        engine.add(workload()[0])
    assert engine.wake() == 0
    assert outputs(engine) == before
    engine.close()


@pytest.mark.parametrize("over", [0, 1, 2, 3])
def test_nothing_else_has_a_part_of_a_cache_s_memory(over: int) -> None:
    """Pages of 256 KiB: of the driver's 2 MiB one, two and three of them beyond leave room for what has 1.1 MiB."""
    spec = load_spec({**QWEN3_06B, "num_hidden_layers": 2}, dtype="bfloat16", max_model_len=64)
    layout = plan_kv_layout(spec, 64, "bfloat16")
    assert layout.buffer_bytes == 1 << 18
    give_back_what_is_cached()
    cache = KVCache(layout, 4096 + over, torch.device("cuda", 0))
    others = [torch.empty(9 << 17, dtype=torch.uint8, device="cuda") for _ in cache.buffers]
    assert all(is_alone(buffer) for buffer in cache.buffers), "would be kept by what stays in it"
    del others


def test_nothing_else_has_a_part_of_a_weight_s_memory() -> None:
    """Qwen3-0.6B's embedding leaves 1.25 MiB of the driver's 298."""
    give_back_what_is_cached()
    vocab, hidden = QWEN3_06B["vocab_size"], QWEN3_06B["hidden_size"]
    weight = Embedding(vocab, hidden, 1.0, dtype=torch.bfloat16, device=torch.device("cuda", 0)).weight
    other = torch.empty(9 << 17, dtype=torch.uint8, device="cuda")
    assert is_alone(weight), "would be kept by what stays in it"
    del other


def is_alone(tensor: torch.Tensor) -> bool:
    """Whether it has whole what the driver gave for it."""
    first = tensor.data_ptr()
    (segment,) = (
        one for one in torch.cuda.memory_snapshot() if one["address"] <= first < one["address"] + one["total_size"]
    )
    return len(segment["blocks"]) == 1


def model(directory: Path) -> str:
    """About 1.3 GB in bf16."""
    return rank_model(
        directory, hidden_size=2048, intermediate_size=5632, num_hidden_layers=12, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, vocab_size=32000, max_position_embeddings=2048, torch_dtype="bfloat16",
    )  # fmt: skip


OPTIONS: dict[str, Any] = {
    "load_format": "dummy", "device": "cuda", "skip_tokenizer_init": True, "max_num_seqs": 64, "max_model_len": 2048,
    "gpu_memory_utilization": 0.3,
}  # fmt: skip


def test_an_llm_gives_its_share_back(tmp_path: Path) -> None:
    llm = LLM(model(tmp_path), **OPTIONS)
    before = [output.outputs[0].token_ids for output in llm.generate(PROMPTS, GREEDY)]
    used = used_bytes()
    for _ in range(2):
        llm.sleep()
        assert used - used_bytes() > 0.2 * torch.cuda.mem_get_info()[1], "other processes may take it"
        with pytest.raises(Rejected):
            llm.generate(PROMPTS, GREEDY)
        llm.wake_up()
        assert [output.outputs[0].token_ids for output in llm.generate(PROMPTS, GREEDY)] == before
        assert abs(used_bytes() - used) < GIB
    llm.close()


def used_bytes() -> int:
    free, total = torch.cuda.mem_get_info()
    return total - free


def test_wake_up_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = LLM(model(tmp_path), **OPTIONS)
    llm.sleep()
    with monkeypatch.context() as patched:
        patched.setattr(torch.cuda, "mem_get_info", lambda _: (GIB, 80 * GIB))
        with pytest.raises(DoesNotFit, match=r"lacks .* of free memory"):
            llm.wake_up()
    llm.wake_up()
    llm.close()
