"""Sleep of a device and its engine on the CPU: memory goes and comes, results stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.support.paged_executor import settings
from tests.support.rank_models import OPTIONS, rank_model
from tests.support.torch_engine import LLAMA, finish, tokens, torch_engine
from thranite import LLM
from thranite.attention.base import KVCache
from thranite.engine.engine import Engine
from thranite.engine.kv_groups import plan_kv_layout
from thranite.engine.null_executor import NullExecutor, NullPace
from thranite.errors import InvalidRequest, Rejected
from thranite.layers.embedding import Embedding
from thranite.layers.own_memory import LARGE_STEP
from thranite.loader.device_memory import GIB, DeviceMemory
from thranite.loader.memory_needs import CUDA_RESERVE
from thranite.models.registry import load_spec
from thranite.request import EngineRequest
from thranite.runner.cuda_profile import held_by_others
from thranite.runner.executor import TorchExecutor
from thranite.runner.host_weights import HostWeights
from thranite.sampling_params import SamplingParams, TokenParams

PROMPT = tuple((7 * i * i + 3 * i) % 131 for i in range(60))


def greedy(engine: Engine, name: str) -> list[int]:
    return tokens(finish(engine, [EngineRequest(name, PROMPT, TokenParams(20, seed=0, temperature=0.0))])[name, 0])


@pytest.mark.parametrize("model", ["llama", "gemma3"])
def test_the_same_tokens_before_and_after(model: str) -> None:
    engine = torch_engine(model)
    before = greedy(engine, "before")
    hits = engine.stats().prefix_cache_hits_total
    assert greedy(engine, "cached") == before
    assert engine.stats().prefix_cache_hits_total > hits
    hits = engine.stats().prefix_cache_hits_total
    for turn in range(2):
        executor = engine._executor
        assert isinstance(executor, TorchExecutor)
        assert engine.sleep() == executor.cache.num_bytes > 0
        assert all(buffer.untyped_storage().nbytes() == 0 for buffer in executor.cache.buffers)
        assert engine.stats().sleeping
        with pytest.raises(Rejected, match="asleep"):
            engine.add(EngineRequest("r", PROMPT, TokenParams(2, seed=0)))
        assert engine.stats().requests_rejected_total["asleep"] == turn + 1
        assert engine.wake() == 0
        assert greedy(engine, f"after {turn}") == before
        assert engine.stats().prefix_cache_hits_total == hits  # what was cached before is void
    engine.check_integrity()


def test_once_asleep_or_awake_is_enough() -> None:
    """Asked again, it forgets nothing: neither cached prefixes while awake, nor weights while asleep."""
    engine = torch_engine("llama")
    before = greedy(engine, "before")
    assert engine.wake() == 0
    assert greedy(engine, "cached") == before
    assert engine.sleep() > 0
    assert engine.sleep() == 0
    assert engine.wake() == 0
    assert greedy(engine, "after") == before


def test_sampled_tokens_too() -> None:
    """The state of samplers and slots is not the cache's."""
    engine = torch_engine("llama")
    params = TokenParams(20, seed=5, n=3, temperature=0.9, top_p=0.9, repetition_penalty=1.2, logit_bias=((3, 2.0),))

    def run(name: str) -> list[list[int]]:
        done = finish(engine, [EngineRequest(name, PROMPT, params)])
        return [tokens(done[name, index]) for index in range(3)]

    before = run("before")
    engine.sleep()
    engine.wake()
    assert run("after") == before


def test_no_request_may_be_open() -> None:
    engine = torch_engine("llama")
    engine.add(EngineRequest("r", PROMPT, TokenParams(5, seed=0)))
    with pytest.raises(RuntimeError, match="1 open requests"):
        engine.sleep()
    engine.abort("r")
    while engine.has_work:
        engine.step()
    engine.sleep()
    engine.close()


def test_a_device_that_lacks_memory_sleeps_on() -> None:
    class Full(NullExecutor):
        missing = 7

        def wake(self) -> int:
            return self.missing

    config = settings()
    device = Full(config, NullPace())
    engine = Engine(config, device)
    engine.sleep()
    assert engine.wake() == 7
    assert engine.stats().sleeping
    device.missing = 0
    assert engine.wake() == 0
    assert not engine.stats().sleeping


def test_views_of_the_cache_see_its_new_memory() -> None:
    spec = load_spec(LLAMA, dtype="float32", max_model_len=96)
    cache = KVCache(plan_kv_layout(spec, 16, "float32"), 8, torch.device("cpu"))
    _, view = cache.layer(1)
    view.fill_(3.0)
    cache.release()
    cache.restore()
    assert not any(buffer.any() for buffer in cache.buffers)
    view[2].fill_(5.0)
    assert any((buffer[2] != 0).any() for buffer in cache.buffers)


def is_alone(storage: torch.UntypedStorage, used: int) -> bool:
    return storage.nbytes() % LARGE_STEP == 0 <= storage.nbytes() - used < LARGE_STEP


@pytest.mark.parametrize("blocks", [1, 70_001, 80_000, 99_999])
def test_a_gpu_s_pages_leave_nothing_of_what_its_driver_gives(blocks: int) -> None:
    """Few pages share such memory with others, whatever their bytes."""
    spec = load_spec(LLAMA, dtype="float32", max_model_len=96)
    with FakeTensorMode():
        cache = KVCache(plan_kv_layout(spec, 16, "float32"), blocks, torch.device("cuda", 0))
        for buffer in cache.buffers:
            storage = buffer.untyped_storage()
            assert storage.nbytes() == buffer.nbytes if blocks == 1 else is_alone(storage, buffer.nbytes)
        assert cache.held_bytes == storage.nbytes() * len(cache.buffers)
        assert cache.num_bytes == blocks * cache.layout.page_bytes


@pytest.mark.parametrize("vocab", [100, 9_999, 151_936])
def test_a_gpu_s_weights_leave_nothing_of_it_either(vocab: int) -> None:
    with FakeTensorMode():
        weight = Embedding(vocab, 1024, 1.0, dtype=torch.bfloat16, device=torch.device("cuda", 0)).weight
        storage = weight.untyped_storage()
        assert storage.nbytes() == weight.nbytes if vocab == 100 else is_alone(storage, weight.nbytes)


def test_weights_come_back_as_they_were_also_where_tensors_share_them() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(30, 20), requires_grad=False)
            self.tied = self.weight
            self.part = nn.Parameter(self.weight.data[3:9], requires_grad=False)
            self.register_buffer("table", torch.arange(12, dtype=torch.bfloat16))

    model: Any = Model()
    before = {name: tensor.clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    kept = HostWeights(model)
    assert model.weight.untyped_storage().nbytes() == model.table.untyped_storage().nbytes() == 0
    kept.restore()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        assert torch.equal(tensor, before[name])
    model.weight.data[3] = 1.0
    assert torch.equal(model.part[0], torch.ones(20))


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_llm_sleeps_and_wakes(tmp_path: Path, ranks: int) -> None:
    llm = LLM(rank_model(tmp_path), device="cpu", tensor_parallel_size=ranks, **OPTIONS)
    prompts = [{"prompt_token_ids": [3 + i, 7, 11, 2 * i]} for i in range(3)]
    params = SamplingParams(max_tokens=12, temperature=0.0)

    def texts() -> list[list[int]]:
        return [list(output.outputs[0].token_ids) for output in llm.generate(prompts, params)]

    before = texts()
    for _ in range(2):
        llm.sleep()
        with pytest.raises(Rejected, match="asleep"):
            texts()
        llm.wake_up()
        assert texts() == before
    with pytest.raises(InvalidRequest, match="level must be 1"):
        llm.sleep(level=2)
    llm.sleep()
    llm.close()


def test_what_others_hold_of_a_gpu_is_not_this_engine_s() -> None:
    """An engine that is alone holds its context when it looks; beside another one, what is beyond that is foreign."""
    total = 80 * GIB
    assert held_by_others(DeviceMemory("cuda", "gpu", total, total - GIB // 2)) == 0
    assert held_by_others(DeviceMemory("cuda", "gpu", total, total - 40 * GIB)) == 40 * GIB - CUDA_RESERVE
