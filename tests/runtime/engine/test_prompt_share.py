"""Prompts take a share of the steps in which sequences decode."""

from __future__ import annotations

from dataclasses import replace
from statistics import quantiles

import pytest

from tests.support.paced_engine import SETTINGS, STEP, TOKEN, Device, Time, serve, usual
from thranite.config import EngineConfig
from thranite.engine.engine import Engine
from thranite.engine.plan import StepPlan
from thranite.engine.prompt_share import (
    FEW_DECODES,
    GRAIN,
    LEAST_TOKENS,
    PILE,
    PILE_SHARE,
    PILE_STEPS,
    PromptShare,
)
from thranite.errors import ConfigError
from thranite.request import EngineRequest
from thranite.sampling_params import TokenParams

MANY = 24  # that decode


def measured(ratio: float, decode: float = STEP, token: float = TOKEN) -> PromptShare:
    share = PromptShare(ratio)
    for _ in range(5):
        share.observe(0, decode)
        share.observe(400, decode + 400 * token)
    return share


def test_nothing_is_bounded_before_steps_were_measured() -> None:
    share = PromptShare(1.0)
    assert share.tokens(MANY, 5000) is None
    share.observe(400, 0.020)  # what of it were the prompt's tokens?
    assert share.tokens(MANY, 5000) is None
    share.observe(0, 0.005)
    share.observe(100, 0.006)  # too short a prompt to tell
    assert share.tokens(MANY, 5000) is None


def test_where_prompts_cost_no_time_they_have_no_bound() -> None:
    assert measured(1.0, token=0.0).tokens(MANY, 5000) is None


@pytest.mark.parametrize("ratio", [2.0, 3.0, 4.0])
def test_prompts_take_their_share_of_a_step(ratio: float) -> None:
    tokens = measured(ratio).tokens(MANY, 0)
    assert tokens is not None
    assert (MANY + tokens) % GRAIN == 0
    assert ratio * STEP - GRAIN * TOKEN < tokens * TOKEN <= ratio * STEP


def test_few_sequences_wait_for_a_whole_prompt() -> None:
    share = measured(1.0)
    assert share.tokens(FEW_DECODES - 1, 0) is None
    assert share.tokens(FEW_DECODES, 0) is not None


def test_pieces_do_not_become_too_small() -> None:
    tokens = measured(0.001).tokens(MANY, 0)
    assert tokens is not None
    assert LEAST_TOKENS - GRAIN < tokens <= LEAST_TOKENS


@pytest.mark.parametrize("ratio", [0.001, 2.0, 4.0])
def test_a_pile_is_worked_off_in_larger_steps(ratio: float) -> None:
    share, alone = measured(ratio), max(int(ratio * STEP / TOKEN), LEAST_TOKENS)
    assert share.tokens(MANY, PILE * (alone - 1)) == share.tokens(MANY, 0)
    tokens = share.tokens(MANY, PILE * (alone + 1))
    assert tokens is not None
    assert PILE_SHARE * alone - GRAIN < tokens <= PILE_SHARE * (alone + 1)


def test_a_large_pile_is_worked_off_in_a_few_steps() -> None:
    tokens = measured(1.0).tokens(MANY, 9000)
    assert tokens is not None
    assert 9000 / PILE_STEPS - GRAIN < tokens <= 9000 / PILE_STEPS


def test_a_prompt_that_ends_just_beyond_its_share_is_cut() -> None:
    class Fixed(PromptShare):
        def tokens(self, decodes: int, pile: int) -> int:
            return 100

    pieces: list[int] = []

    def noting(plan: StepPlan) -> float:
        if plan.decodes:
            pieces.extend(len(prefill.token_ids) for prefill in plan.prefills)
        return usual(plan)

    time = Time()
    engine = Engine(SETTINGS, Device(time, noting), clock=time)
    engine.scheduler.prompt_share = Fixed(1.0)
    engine.add(EngineRequest("decodes", (3, 4), TokenParams(50, 1)))
    engine.step()
    engine.add(EngineRequest("long", (3,) * 110, TokenParams(5, 2)))
    while engine.has_work:
        engine.step()
    assert pieces == [100, 10]


@pytest.mark.parametrize(("rate", "count", "most"), [(16.0, 200, 0.75), (32.0, 300, 0.9)])
def test_next_tokens_come_sooner_and_first_ones_little_later(rate: float, count: int, most: float) -> None:
    """Prompts pile up at the higher rate."""
    whole = serve(rate, count, waits=True)
    shared = serve(rate, count, waits=True, limits=replace(SETTINGS, prompt_time_ratio=2.0))
    before, after = quantiles(whole.next_tokens, n=100)[98], quantiles(shared.next_tokens, n=100)[98]
    print(f"{rate}/s: 99th {1e3 * before:.1f} -> {1e3 * after:.1f} ms", end=", ")
    print(f"first tokens {1e3 * whole.mean:.1f} -> {1e3 * shared.mean:.1f} ms")
    assert after < most * before
    assert shared.mean < 1.35 * whole.mean
    assert shared.seconds < 1.01 * whole.seconds


def test_all_at_once_take_hardly_longer() -> None:
    whole = serve(1e9, 200, waits=True)
    shared = serve(1e9, 200, waits=True, limits=replace(SETTINGS, prompt_time_ratio=2.0))
    assert shared.seconds < 1.02 * whole.seconds


@pytest.mark.parametrize("ratio", [-0.1, float("nan"), float("inf")])
def test_a_ratio_that_bounds_nothing_sensible_is_refused(ratio: float) -> None:
    with pytest.raises(ConfigError, match="--prompt-time-ratio"):
        EngineConfig(model="m", prompt_time_ratio=ratio)


def test_prompts_that_have_no_slot_yet_are_no_pile() -> None:
    """Full of sequences that decode, an engine takes prompts in as others end, a share at a time."""
    full = replace(SETTINGS, max_num_seqs=24)
    whole = serve(1e9, 150, waits=True, limits=full)
    shared = serve(1e9, 150, waits=True, limits=replace(full, prompt_time_ratio=1.0))
    before, after = (quantiles(run.next_tokens, n=1000)[994] for run in (whole, shared))
    print(f"995th of 1000: {1e3 * before:.1f} -> {1e3 * after:.1f} ms, {whole.seconds:.2f} -> {shared.seconds:.2f} s")
    assert after < 0.8 * before
    assert shared.seconds < 1.03 * whole.seconds
