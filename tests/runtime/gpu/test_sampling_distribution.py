"""Draws on the GPU follow the exact distribution: the sampler by itself, and end to end through an engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.runtime.gpu.test_cuda_engine import engine_on
from tests.runtime.runner.test_sampler_distribution import CASES
from tests.support.draw_margins import watch
from tests.support.sampling import Row, chi_square_excess, distribution, params
from tests.support.torch_engine import finish, tokens
from thranite.request import EngineRequest
from thranite.runner.cuda_sampler import CudaSampler

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

DRAWS, BATCH = 100_000, 4_000
REQUESTS = 8_192


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab", [40, 20_000])
@pytest.mark.parametrize("name", CASES)
def test_draws_follow_the_exact_distribution(name: str, vocab: int, dtype: torch.dtype) -> None:
    """A vocabulary of one chunk, and one of several whose first 40 tokens are the likely ones."""
    row = Row(params(seed=77, **CASES[name]), (1, 1, 4, 5, 6, 6, 6, 8), 3)
    rng = np.random.default_rng(11)
    logits = torch.from_numpy(np.concatenate([rng.normal(0, 1.5, 40), rng.normal(-14, 1.5, vocab - 40)])).to(dtype)
    device = torch.device("cuda", 0)
    sampler = CudaSampler(vocab, BATCH, device, torch.zeros(BATCH, dtype=torch.int32, device=device))
    many = logits.to(device).repeat(BATCH, 1)
    slots = torch.zeros(BATCH, dtype=torch.int32, device=device)
    counts = np.zeros(vocab)
    for first in range(0, DRAWS, BATCH):
        sampler.start([row.start(0)])  # anew, because a step's draws are counted for its penalties
        positions = torch.arange(first, first + BATCH, dtype=torch.int32, device=device)
        drawn = sampler.draw(many, ([0] * BATCH, np.zeros(BATCH, np.int64)), slots, positions, {})
        counts += np.bincount(drawn.tokens.cpu().numpy(), minlength=vocab)
    exact = distribution(logits.double().numpy(), row)
    assert chi_square_excess(*merged(counts, exact)) < 5.0


def merged(counts: Any, exact: Any) -> tuple[Any, Any]:
    """Possible tokens that are expected fewer than ten times go with the least likely of the others."""
    rare = (exact > 0) & (exact * counts.sum() < 10)
    least = int(np.where(rare | (exact == 0), np.inf, exact).argmin())
    joined = []
    for values in (counts, exact):
        together = np.where(rare, 0.0, values)
        together[least] += values[rare].sum()
        joined.append(together)
    return joined[0], joined[1]


@pytest.mark.parametrize("name", ["cold", "top_k", "top_p", "min_p", "all truncations", "bias"])
def test_an_engines_first_tokens_do_too(name: str) -> None:
    """One prompt under thousands of seeds, with prefix cache and several rows a step."""
    engine = engine_on("cuda", "llama", max_num_seqs=256, max_num_batched_tokens=4096, num_blocks=2048, overlap=True)
    prompt = tuple(range(20, 60))
    kept = watch(engine)
    one = EngineRequest("first", prompt, params(seed=REQUESTS, **{**CASES[name], "max_tokens": 1}))
    finish(engine, [one])
    logits = kept.draws[REQUESTS, 0, len(prompt)].logits.double().numpy()
    requests = [
        EngineRequest(f"r{seed}", prompt, params(seed=seed, **{**CASES[name], "max_tokens": 1}))
        for seed in range(REQUESTS)
    ]
    counts = np.zeros(len(logits))
    for first in range(0, REQUESTS, 2048):
        for deltas in finish(engine, requests[first : first + 2048]).values():
            counts[tokens(deltas)] += 1
    engine.close()
    assert counts.sum() == REQUESTS
    exact = distribution(logits, Row(params(**CASES[name]), prompt, len(prompt)))
    assert chi_square_excess(*merged(counts, exact)) < 5.0
