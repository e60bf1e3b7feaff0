"""Log-probabilities of sampled tokens and of prompts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.sampling import Row, params, softmax
from thranite.request import TokenLogprobs
from thranite.runner.logprobs import best_ids, prompt_logprobs
from thranite.runner.sampler import Sampler

VOCAB = 50


def expected(logits: np.ndarray, token: int, k: int) -> TokenLogprobs:
    logprobs = np.log(softmax(logits))
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    top = tuple((i, logprobs[i]) for i in order[:k])
    return TokenLogprobs(token, logprobs[token], order.index(token) + 1, top)


def close(found: TokenLogprobs, wanted: TokenLogprobs) -> bool:
    same = (found.token_id, found.rank) == (wanted.token_id, wanted.rank)
    ids = [token for token, _ in found.top] == [token for token, _ in wanted.top]
    values = np.allclose([v for _, v in found.top], [v for _, v in wanted.top], rtol=0, atol=1e-5)
    return same and ids and bool(values) and abs(found.logprob - wanted.logprob) < 1e-5


@settings(max_examples=80, deadline=None)
@given(st.lists(st.one_of(st.none(), st.integers(0, 20)), min_size=1, max_size=8), st.integers(0, 2**32 - 1))
def test_rows_that_asked_get_raw_logprobs(asked: list[int | None], seed: int) -> None:
    """Raw: before bans, penalties and temperature. Rounded logits make many ties."""
    logits = np.random.default_rng(seed).normal(0, 2, (len(asked), VOCAB)).round(1).astype(np.float32)
    sampler = Sampler(VOCAB, len(asked), torch.device("cpu"))
    changes: list[dict[str, Any]] = [
        {},
        {"temperature": 0.0},
        {"top_k": 3},
        {"repetition_penalty": 2.0},
        {"bad_words": ((1,),)},
    ]
    rows = [Row(params(seed=i, logprobs=k, **changes[(i + seed) % 5]), (1, 2), 1) for i, k in enumerate(asked)]
    sampler.start([row.start(i) for i, row in enumerate(rows)])
    slots = list(range(len(asked)))
    tokens, scores = sampler.sample(torch.from_numpy(logits.copy()), slots, [2] * len(asked), {}).result()
    assert set(scores) == {row for row, k in enumerate(asked) if k is not None}
    for row, (score,) in scores.items():
        assert close(score, expected(logits[row].astype(np.float64), tokens[row][0], asked[row] or 0))


@pytest.mark.parametrize("k", [0, 1, 3, 7, 12])
def test_ties_go_to_the_lower_id(k: int) -> None:
    logits = torch.tensor([[1.0, 3.0, 1.0, 3.0, 1.0, 1.0, 0.0, 1.0, -1.0, 3.0, 1.0, 0.0]])
    assert best_ids(logits, k).tolist() == [[1, 3, 9, 0, 2, 4, 5, 7, 10, 6, 11, 8][:k]]


@pytest.mark.parametrize("slice_rows", [1, 4, 7, 64])
@pytest.mark.parametrize("targets", [0, 9, 10])
def test_prompt_logprobs_are_scored_in_bounded_slices(slice_rows: int, targets: int) -> None:
    random = np.random.default_rng(2)
    hidden, head = random.normal(size=(10, 6)), random.normal(size=(VOCAB, 6))
    wanted = random.integers(0, VOCAB, targets).tolist()
    sizes: list[int] = []

    def logits_fn(part: torch.Tensor) -> torch.Tensor:
        sizes.append(len(part))
        return part @ torch.from_numpy(head).T

    found = prompt_logprobs(torch.from_numpy(hidden), wanted, 5, logits_fn, slice_rows)
    assert sum(sizes) == targets
    assert max(sizes, default=0) <= slice_rows
    logits = hidden @ head.T
    assert len(found) == targets
    assert all(close(score, expected(logits[i], wanted[i], 5)) for i, score in enumerate(found))
