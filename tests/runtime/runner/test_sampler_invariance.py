"""A row's token depends on (seed, sample index, position) and its own logits and history, never on its company."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.sampling import Row, params, sample_rows
from thranite.runner.sampler import Sampler

CPU = torch.device("cpu")
VOCAB, SLOTS = 1003, 16
KINDS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.7},
    {"top_k": 20},
    {"top_k": 300},
    {"top_p": 0.9},
    {"top_k": 40, "top_p": 0.8},
    {"min_p": 0.05, "top_p": 0.95},
    {"frequency_penalty": 0.5, "repetition_penalty": 1.2},
    {"logit_bias": ((3, 5.0),), "bad_words": ((4,),)},
    {"logprobs": 3, "top_k": 5},
]


def make_rows(count: int) -> list[Row]:
    rows = [params(seed=1000 + i, **KINDS[i % len(KINDS)]) for i in range(count)]
    return [Row(p, (5, 6, 7 + i), 2, sample_index=i % 3) for i, p in enumerate(rows)]


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from([torch.float32, torch.float64]))
def test_a_row_alone_equals_the_row_in_any_batch_slot_and_order(data: st.DataObject, dtype: torch.dtype) -> None:
    rows = make_rows(12)
    # bfloat16 values, as a GPU's head gives them: many exact ties
    logits = (torch.randn(12, VOCAB, generator=torch.Generator().manual_seed(3)) * 2).bfloat16().to(dtype)
    chosen = data.draw(st.lists(st.sampled_from(range(12)), min_size=1, max_size=12, unique=True))
    slots = data.draw(st.permutations(range(SLOTS)))[: len(chosen)]
    together = sample_rows(Sampler(VOCAB, SLOTS, CPU), logits[chosen], [rows[i] for i in chosen], slots)
    alone = [sample_rows(Sampler(VOCAB, 1, CPU), logits[i : i + 1], [rows[i]], [0])[0] for i in chosen]
    assert together == alone


def test_expanded_rows_of_one_prompt_draw_each_their_own_sample() -> None:
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(5))
    rows = [Row(params(seed=9), (1, 2), 2, sample_index=i) for i in range(SLOTS)]
    drawn = sample_rows(Sampler(VOCAB, SLOTS, CPU), logits.expand(SLOTS, -1), rows, list(range(SLOTS)))
    assert len(set(drawn)) > SLOTS // 2
    assert drawn[3] == sample_rows(Sampler(VOCAB, 1, CPU), logits, [rows[3]], [0])[0]


@pytest.mark.parametrize("seeds", [(-1, 2**64 - 1), (-(2**63), 2**63)])
def test_seeds_are_taken_modulo_2_to_the_64(seeds: tuple[int, int]) -> None:
    logits = torch.zeros(1, VOCAB)
    drawn = {sample_rows(Sampler(VOCAB, 1, CPU), logits, [Row(params(seed=s), (1,), 1)], [0])[0] for s in seeds}
    assert len(drawn) == 1


@pytest.mark.parametrize("penalty", ["presence_penalty", "frequency_penalty", "repetition_penalty"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_preempted_and_resumed_equals_uninterrupted(penalty: str, temperature: float) -> None:
    """Counts kept on the device step by step equal those rebuilt from the tokens when a slot is taken again."""
    vocab, random = 30, np.random.default_rng(0)
    options = params(seed=4, temperature=temperature, **{penalty: 1.7})
    logits = torch.from_numpy(random.normal(0, 2, vocab) + random.normal(0, 1, (40, vocab)))
    steady, resumed = Sampler(vocab, 3, CPU), Sampler(vocab, 3, CPU)
    history = [1, 2, 2]
    steady.start([Row(options, tuple(history), 3).start(1)])
    off: dict[str, Any] = {penalty: 1.0 if penalty == "repetition_penalty" else 0.0}
    unpenalized = dataclasses.replace(options, **off)
    differences = 0
    for step in range(40):
        row = Row(options, tuple(history), 3)
        token = steady.sample(logits[step : step + 1].clone(), [1], [len(history)], {}).result()[0][0][0]
        assert sample_rows(resumed, logits[step : step + 1], [row], [step % 3]) == [token]
        free = Row(unpenalized, tuple(history), 3)
        differences += sample_rows(Sampler(vocab, 1, CPU), logits[step : step + 1], [free], [0]) != [token]
        history.append(token)
    assert differences > 3  # the penalty mattered


def test_counts_survive_the_growth_of_their_pool() -> None:
    sampler = Sampler(VOCAB, SLOTS, CPU)
    logits = torch.zeros(1, VOCAB)
    logits[0, 8] = 1.0
    for slot in range(SLOTS):
        sampler.start([Row(params(temperature=0.0, presence_penalty=2.0), (1,), 1).start(slot)])
        assert sampler.sample(logits.clone(), [slot], [1], {}).tokens.tolist() == [8]
    everywhere = sampler.sample(logits.expand(SLOTS, -1).clone(), list(range(SLOTS)), [2] * SLOTS, {})
    assert everywhere.tokens.tolist() == [0] * SLOTS


def test_large_steps_are_sampled_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, slots = make_rows(12), list(range(12))
    logits = torch.randn(12, VOCAB, generator=torch.Generator().manual_seed(8))
    positions = [3] * 12

    def outcome(part: int) -> tuple[object, object]:
        monkeypatch.setattr("thranite.runner.sampler.PART", part)
        sampler = Sampler(VOCAB, 12, CPU)
        sampler.start([row.start(slot) for row, slot in zip(rows, slots, strict=True)])
        return sampler.sample(logits.clone(), slots, positions, {}).result()

    whole, by_fives, by_ones = outcome(2**24), outcome(5 * VOCAB), outcome(1)
    assert whole == by_fives == by_ones
    assert set(whole[1]) == {10}  # type: ignore[call-overload]
