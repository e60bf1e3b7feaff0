"""What a step is taken to cost: the shape of real models' steps, and the sizes chosen by it."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.support.paged_executor import settings
from tests.support.sampling import params
from thranite.batch_order import batch_order
from thranite.bench.shapes import SHAPES
from thranite.bench.workloads import WORKLOADS
from thranite.engine.step_cost import StepCost
from thranite.models.partition import rank_spec
from thranite.models.registry import load_spec
from thranite.request import EngineRequest


def cost_of(shape: str, ranks: int = 1) -> StepCost:
    return StepCost.of(rank_spec(load_spec(SHAPES[shape], dtype="bfloat16"), ranks))


def test_llama_8b_on_an_h200() -> None:
    """Milliseconds without attention, by tokens, and those with prompts (docs/performance.md)."""
    cost = cost_of("llama-8b")
    measured = {14: 4.81, 80: 4.77, 146: 5.31, 205: 6.37, 256: 7.13}
    for tokens, milliseconds in measured.items():
        assert cost.seconds(tokens) * 1e3 == pytest.approx(milliseconds, rel=0.14)
    for tokens, milliseconds in {320: 9.0, 512: 12.7, 1024: 23.7}.items():
        assert (cost.seconds(tokens) + cost.prompts) * 1e3 == pytest.approx(milliseconds, rel=0.07)


def test_it_is_convex_and_grows() -> None:
    cost = cost_of("qwen3-0.6b")
    steps = [cost.seconds(tokens) for tokens in range(0, 8192, 64)]
    growth = [after - before for before, after in pairwise(steps)]
    assert all(0 < before <= after for before, after in pairwise(growth))
    assert max(growth) <= cost.token * 64


@pytest.mark.parametrize(
    ("shape", "workload", "ranks", "tokens"),
    [
        ("llama-8b", "mixed", 1, 320),
        ("llama-8b", "mixed", 2, 512),
        ("llama-8b", "mixed1k", 1, 8192),
        ("llama-8b", "prefill", 1, 8192),
        ("llama-8b", "decode64", 1, 8192),
        ("qwen3-0.6b", "mixed", 1, 8192),
    ],
)
def test_steps_of_the_workloads(shape: str, workload: str, ranks: int, tokens: int) -> None:
    limits = settings(
        num_blocks=1_000_000, max_num_seqs=1024, max_num_batched_tokens=8192, max_model_len=4096,
        step_cost=cost_of(shape, ranks),
    )  # fmt: skip
    requests = [
        EngineRequest(str(i), (1,) * prompt, params(max_tokens=output))
        for i, (prompt, output) in enumerate(WORKLOADS[workload].lengths)
    ]
    assert batch_order(requests, limits).step_tokens == tokens
