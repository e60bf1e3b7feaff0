"""Draws follow the exact distribution: chi-square over tens of thousands of positions with fixed seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.support.sampling import Row, chi_square_excess, distribution, params
from thranite.runner.sampler import Sampler

VOCAB, DRAWS = 40, 40_000
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "cold": {"temperature": 0.5},
    "hot": {"temperature": 1.7},
    "top_k": {"top_k": 7},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.1},
    "all truncations": {"temperature": 1.5, "min_p": 0.02, "top_k": 20, "top_p": 0.9},
    "presence": {"presence_penalty": 1.5},
    "frequency": {"frequency_penalty": -0.7},
    "repetition": {"repetition_penalty": 1.8},
    "bias": {"logit_bias": ((3, 2.0), (9, -4.0)), "bad_words": ((2,),), "top_p": 0.95},
}


@pytest.mark.parametrize("name", ["plain", "top_p", "all truncations", "bias"])
def test_draws_of_several_chunks_follow_it_too(name: str) -> None:
    """A chunk that holds half of the likely tokens, one that holds none, and a last one that is cut short."""
    row = Row(params(seed=78, **CASES[name]), (1, 1, 4, 5, 6, 6, 6, 8), 3)
    logits = np.full(8_250, -np.inf)
    logits[[*range(VOCAB // 2), *range(8_200, 8_200 + VOCAB // 2)]] = np.random.default_rng(12).normal(0, 1.5, VOCAB)
    sampler, counts = Sampler(len(logits), 1, torch.device("cpu")), np.zeros(len(logits))
    sampler.start([row.start(0)])
    for first in range(0, 4_000, 1_000):
        many = torch.from_numpy(logits).float().repeat(1_000, 1)
        drawn = sampler.sample(many, [0] * 1_000, list(range(first, first + 1_000)), {}).tokens.numpy()
        counts += np.bincount(drawn, minlength=len(logits))
    assert chi_square_excess(counts, distribution(logits, row)) < 4.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_draws_follow_the_exact_distribution(name: str, dtype: torch.dtype) -> None:
    row = Row(params(seed=77, **CASES[name]), (1, 1, 4, 5, 6, 6, 6, 8), 3)
    logits = np.random.default_rng(11).normal(0, 1.5, VOCAB)
    sampler = Sampler(VOCAB, 1, torch.device("cpu"))
    sampler.start([row.start(0)])
    many = torch.from_numpy(logits).to(dtype).repeat(DRAWS, 1)
    drawn = sampler.sample(many, [0] * DRAWS, list(range(DRAWS)), {}).tokens.numpy()
    counts = np.bincount(drawn, minlength=VOCAB).astype(np.float64)
    assert chi_square_excess(counts, distribution(logits, row)) < 4.0


def test_the_check_notices_a_wrong_distribution() -> None:
    logits = np.random.default_rng(11).normal(0, 1.5, VOCAB)
    right = distribution(logits, Row(params(), (1,), 1))
    counts = np.random.default_rng(0).multinomial(DRAWS, right).astype(np.float64)
    assert chi_square_excess(counts, right) < 4.0
    assert chi_square_excess(counts, distribution(logits, Row(params(temperature=1.1), (1,), 1))) > 20.0
    assert chi_square_excess(counts, distribution(logits, Row(params(top_k=30), (1,), 1))) == np.inf
