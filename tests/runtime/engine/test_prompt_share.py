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
    LEAST_PAUSED,
    LEAST_TOKENS,
    LONGEST_PAUSE,
    PAUSE_EVERY,
    PAUSE_TOKENS,
    PILE,
    PILE_SHARE,
    PILE_STEPS,
    SAVED_PAUSES,
    PromptShare,
    Share,
)
from thranite.engine.settings import EngineSettings
from thranite.errors import ConfigError
from thranite.request import EngineRequest
from thranite.sampling_params import TokenParams

MANY = 24  # that decode


def measured(ratio: float, decode: float = STEP, token: float = TOKEN) -> PromptShare:
    share = PromptShare(ratio)
    for _ in range(5):
        share.observe(0, MANY, decode)
        share.observe(400, MANY, decode + 400 * token)
    return share


def beside(share: PromptShare, pile: int = 0, decodes: int = MANY) -> int | None:
    """Tokens of prompts in a step in which all that decode do."""
    found = share.next(decodes, pile, may_pause=False)
    assert not found.pause
    return None if found.tokens is None else found.tokens - decodes


def test_nothing_is_bounded_before_steps_were_measured() -> None:
    share = PromptShare(1.0)
    assert beside(share, 5000) is None
    share.observe(400, MANY, 0.020)  # what of it were the prompt's tokens?
    assert beside(share, 5000) is None
    share.observe(0, MANY, 0.005)
    share.observe(100, MANY, 0.006)  # too short a prompt to tell
    share.observe(400, 0, 0.016)  # prompts alone read the weights, too
    assert share.next(MANY, 5000, may_pause=True) == Share(None)


def test_where_prompts_cost_no_time_they_have_no_bound() -> None:
    assert measured(1.0, token=0.0).next(MANY, 5000, may_pause=True) == Share(None)


@pytest.mark.parametrize("ratio", [2.0, 3.0, 4.0])
def test_prompts_take_their_share_of_a_step(ratio: float) -> None:
    tokens = beside(measured(ratio))
    assert tokens is not None
    assert (MANY + tokens) % GRAIN == 0
    assert ratio * STEP - GRAIN * TOKEN < tokens * TOKEN <= ratio * STEP


def test_few_sequences_wait_for_a_whole_prompt() -> None:
    share = measured(1.0)
    assert share.next(FEW_DECODES - 1, 3000, may_pause=True) == Share(None)
    assert beside(share, decodes=FEW_DECODES) is not None


def test_pieces_do_not_become_too_small() -> None:
    tokens = beside(measured(0.001))
    assert tokens is not None
    assert LEAST_TOKENS - GRAIN < tokens <= LEAST_TOKENS


@pytest.mark.parametrize("ratio", [0.001, 2.0, 4.0])
def test_a_pile_is_worked_off_in_larger_steps(ratio: float) -> None:
    share, alone = measured(ratio), max(int(ratio * STEP / TOKEN), LEAST_TOKENS)
    assert beside(share, int(PILE * (alone - 1))) == beside(share)
    tokens = beside(share, int(PILE * (alone + 1)))
    assert tokens is not None
    assert PILE_SHARE * alone - GRAIN < tokens <= PILE_SHARE * (alone + 1)


def test_a_large_pile_is_worked_off_in_a_few_steps() -> None:
    tokens = beside(measured(1.0), 9000)
    assert tokens is not None
    assert 9000 / PILE_STEPS - GRAIN < tokens <= 9000 / PILE_STEPS


def test_who_decodes_pauses_for_a_pile_that_takes_no_longer_than_a_pause_may() -> None:
    most = int((LONGEST_PAUSE - STEP) / TOKEN)
    assert measured(1.0).next(MANY, most - 10, may_pause=True) == Share(PAUSE_TOKENS, pause=True)
    assert not measured(1.0).next(MANY, most + 10, may_pause=True).pause
    assert not measured(1.0).next(MANY, LEAST_PAUSED - 1, may_pause=True).pause
    few = measured(8.0)
    assert few.next(MANY, int(PILE * 8.0 * STEP / TOKEN) - 30, may_pause=True) == few.next(MANY, 0, may_pause=True)


def test_pauses_are_short_and_few() -> None:
    """However fast prompts come."""
    share = measured(1.0)
    pauses, in_a_row, longest, steps = 0, 0.0, 0.0, 20 * PAUSE_EVERY
    for _ in range(steps):
        if share.next(MANY, LEAST_PAUSED, may_pause=True).pause:
            pauses += in_a_row == 0.0
            in_a_row += STEP + PAUSE_TOKENS * TOKEN
        else:
            in_a_row = 0.0
        longest = max(longest, in_a_row)
    assert LONGEST_PAUSE / 2 < longest <= LONGEST_PAUSE
    assert 18 <= pauses <= steps / PAUSE_EVERY + SAVED_PAUSES


def test_a_prompt_that_ends_just_beyond_its_share_is_cut() -> None:
    class Fixed(PromptShare):
        def next(self, decodes: int, pile: int, may_pause: bool) -> Share:
            return Share(decodes + 100)

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


@pytest.mark.parametrize(("rate", "count", "most"), [(16.0, 200, 0.75), (32.0, 300, 0.95)])
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


class Pausing(PromptShare):
    """Whoever decodes pauses wherever there are prompts."""

    def next(self, decodes: int, pile: int, may_pause: bool) -> Share:
        return Share(64, pause=True) if pile and may_pause else Share(None)


def outputs(
    share: PromptShare | None, prompts: dict[str, int], limits: EngineSettings = SETTINGS
) -> tuple[dict[str, list[int]], list[StepPlan]]:
    """Tokens of requests of so long prompts that come one after another, and the plans of all steps."""
    plans: list[StepPlan] = []
    tokens: dict[str, list[int]] = {name: [] for name in prompts}

    def noting(plan: StepPlan) -> float:
        plans.append(plan)
        return usual(plan)

    time = Time()
    engine = Engine(limits, Device(time, noting), clock=time)
    engine.scheduler.prompt_share = share
    coming = list(prompts.items())
    while coming or engine.has_work:
        if coming and len(plans) % 3 == 0:
            name, length = coming.pop(0)
            engine.add(EngineRequest(name, (3 + len(coming),) * length, TokenParams(40, seed=len(coming))))
        for delta in engine.step():
            tokens[delta.request_id] += delta.token_ids
    engine.scheduler.check_integrity()
    return tokens, plans


def test_sequences_that_pause_go_on_where_they_were() -> None:
    prompts = {"a": 100, "b": 300, "c": 500, "d": 64}
    plain, _ = outputs(None, prompts)
    paused, plans = outputs(Pausing(1.0), prompts)
    assert plain == paused
    pauses = [plan for plan in plans if not plan.decodes and plan.prefills][1:]
    assert len(pauses) >= 10
    assert all(sum(len(prefill.token_ids) for prefill in plan.prefills) <= 64 for plan in pauses)


def test_nobody_pauses_for_prompts_that_would_take_their_pages() -> None:
    asked: list[tuple[int, bool]] = []

    class Asked(PromptShare):
        def next(self, decodes: int, pile: int, may_pause: bool) -> Share:
            asked.append((pile, may_pause))
            return Share(None)

    limits = replace(SETTINGS, max_model_len=400, max_num_batched_tokens=512)
    for blocks, whole in ((60, True), (22, False)):
        asked.clear()
        outputs(Asked(1.0), {"a": 60, "b": 290, "c": 300}, replace(limits, num_blocks=blocks))
        assert (290, True) in asked
        assert next(may for pile, may in asked if pile == 300) is whole


def test_the_last_of_a_burst_comes_sooner_where_others_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = replace(SETTINGS, prompt_time_ratio=2.0)
    with_pauses = serve(32.0, 300, waits=True, limits=limits)
    monkeypatch.setattr("thranite.engine.prompt_share.SAVED_PAUSES", 0)
    without = serve(32.0, 300, waits=True, limits=limits)
    first, then = (1e3 * quantiles(run.first_tokens, n=100)[98] for run in (without, with_pauses))
    gap, later = (1e3 * quantiles(run.next_tokens, n=100)[98] for run in (without, with_pauses))
    print(f"99th: first tokens {first:.1f} -> {then:.1f} ms, next ones {gap:.1f} -> {later:.1f} ms")
    assert then < 0.95 * first
    assert later < 1.2 * gap
