"""What the memory plan of a GPU counts, with the device's figures made up."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.torch_engine import GEMMA3, LENGTH
from thranite.engine.kv_groups import plan_kv_layout
from thranite.engine.settings import EngineSettings
from thranite.loader.memory_needs import PROMPT_LOGPROB_ROWS
from thranite.models.decoder import Decoder
from thranite.models.registry import load_spec
from thranite.runner.cuda_executor import CudaExecutor
from thranite.runner.cuda_profile import graph_reserve, largest_step, measure_activations, without_samples
from thranite.runner.mixed_shapes import mixed_shapes
from thranite.runner.pretended_gpu import DEVICE, pretended_gpu
from thranite_kernels.target import Target

SPEC = load_spec(GEMMA3, dtype="bfloat16", max_model_len=LENGTH)


def settings(**changes: Any) -> EngineSettings:
    fields: dict[str, Any] = {
        "layout": plan_kv_layout(SPEC, 16, "bfloat16"), "num_blocks": 64, "vocab_size": SPEC.vocab_size,
        "max_model_len": 4096, "max_num_seqs": 16, "max_num_batched_tokens": 2048,
    }  # fmt: skip
    return EngineSettings(**{**fields, **changes})


@pytest.mark.parametrize(
    ("seqs", "budget", "length", "tokens", "scored"),
    [
        (16, 2048, 4096, 2048, PROMPT_LOGPROB_ROWS),
        (1024, 8192, 4096, 8192, PROMPT_LOGPROB_ROWS),
        (1, 2048, 4096, 2048, 2047),
        (64, 64, 4096, 64, 0),  # a token a slot
        (1024, 7, 4096, 7, 0),
        (2, 2048, 100, 198, 98),  # a sequence ends before the budget does
    ],
)
def test_the_largest_step_fills_the_budget(seqs: int, budget: int, length: int, tokens: int, scored: int) -> None:
    """In every slot that it has tokens for, with a slice of prompt log-probabilities."""
    plan = largest_step(settings(max_num_seqs=seqs, max_num_batched_tokens=budget, max_model_len=length))
    assert plan.num_tokens == tokens
    assert plan.sample_slots == list(range(min(seqs, budget)))
    assert len(plan.prefills[0].targets) == scored
    assert (plan.prefills[0].prompt_logprobs is not None) == (scored > 0)
    assert all(0 < len(prefill.token_ids) < length for prefill in plan.prefills)
    assert not plan.blocks


@pytest.mark.parametrize("eager", [True, False])
def test_what_is_counted(monkeypatch: pytest.MonkeyPatch, eager: bool) -> None:
    """The slots' and the sampler's state, the step's peak, what lies outside torch, and graphs; pages are planned
    apart, and weights were there before."""
    weights, state, peak, outside, others = 7_000, 300, 50_000, 900, 20_000
    layers = 6400
    config = settings(max_model_len=LENGTH, max_num_batched_tokens=64)
    cache = 0
    with pretended_gpu(Target(90, 132)):
        model = Decoder(SPEC, torch.bfloat16, DEVICE)
        held = [weights]

        def make(measured: EngineSettings) -> CudaExecutor:
            nonlocal cache
            assert measured.num_blocks == 2  # whatever is planned for the cache
            executor = CudaExecutor(model, SPEC, measured, DEVICE, 256, eager=eager)
            cache = executor.cache.num_bytes
            held.append(weights + state + cache)
            return executor

        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: held[-1])
        peaks = iter((layers, peak))  # of the step without samples, and with all
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: held[-1] + next(peaks))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 100_000)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10**9, 10**9 + 100_000 + outside + others))
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        found = measure_activations(make, config, SPEC, DEVICE, others, eager)
    assert cache > 0
    assert found == state + peak + outside + (0 if eager else graph_reserve(config, SPEC, layers // 64))


def test_no_graph_is_for_more_decodes_than_a_step_has_tokens() -> None:
    config = settings(max_num_seqs=1024, max_num_batched_tokens=64)
    assert config.most_decodes == 64
    assert max(shape.decodes for shape in mixed_shapes(config, SPEC)) == 64


@pytest.mark.parametrize(("seqs", "budget", "tokens"), [(16, 64, 16 + 64), (1024, 8192, 1024 + 8192)])
def test_the_two_pools_are_as_large_as_the_largest_graphs(seqs: int, budget: int, tokens: int) -> None:
    """GEMMA3 is tiny: steps have graphs up to the token budget."""
    config = settings(max_num_seqs=seqs, max_num_batched_tokens=budget)
    assert graph_reserve(config, SPEC, 100) - graph_reserve(config, SPEC, 0) == 100 * tokens


def test_the_layers_of_a_step_alone() -> None:
    plan = largest_step(settings())
    alone = without_samples(plan)
    assert alone.num_tokens == plan.num_tokens == 2048
    assert (alone.starts, alone.blocks) == (plan.starts, plan.blocks)
    assert not alone.sample_slots
    assert all(prefill.prompt_logprobs is None for prefill in alone.prefills)
