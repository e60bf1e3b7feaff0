"""The null device: its pace, its made-up tokens, and what it refuses to execute."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.support.paced_engine import Time
from tests.support.paged_executor import VOCAB, settings
from thranite.engine.engine import Engine
from thranite.engine.null_audit import PlanError
from thranite.engine.null_executor import NullExecutor, NullPace
from thranite.engine.plan import BlockUpdate, Prefill, SlotStart, StepPlan
from thranite.request import EngineRequest, FinishReason
from thranite.sampling_params import TokenParams

EOS = 2


def device(pace: NullPace | None = None, time: Time | None = None, **changes: Any) -> NullExecutor:
    time = time or Time()
    return NullExecutor(settings(**changes), pace or NullPace(), eos_token_ids=(EOS,), clock=time, sleep=time.sleep)


def generate(params: TokenParams, *, prompt: int = 5, name: str = "r", **changes: Any) -> list[list[int]]:
    """Tokens by sample, through the real engine."""
    engine = Engine(settings(**changes), device(**changes))
    engine.add(EngineRequest(name, tuple(range(3, 3 + prompt)), params))
    tokens: list[list[int]] = [[] for _ in range(params.n)]
    while engine.has_work:
        for delta in engine.step():
            tokens[delta.index] += delta.token_ids
    engine.check_integrity()
    return tokens


def first_plan(**changes: Any) -> StepPlan:
    """A correct plan: slot 0 computes a prompt of five tokens and samples."""
    start = SlotStart(0, 0, TokenParams(8, 1), (1, 2, 3, 4, 5), 5, 0)
    plan = StepPlan(1, (), (Prefill(0, 0, (1, 2, 3, 4, 5), (0,)),), (start,), (BlockUpdate(0, 0, 0, (7, 8)),))
    return replace(plan, **changes)


def run(executor: NullExecutor, plan: StepPlan, **masks: bytes) -> list[list[int]]:
    executor.launch(plan)
    executor.sample({int(slot[1:]): mask for slot, mask in masks.items()})
    return [list(row) for row in executor.collect().tokens]


def test_steps_take_their_time_on_one_device() -> None:
    time = Time()
    executor = device(NullPace(step=1.0, prompt_token=0.1, row=0.01), time)
    executor.launch(first_plan())
    executor.sample({})
    executor.launch(StepPlan(2, (0,)))
    executor.sample({})
    assert time.now == 50.0
    executor.collect()
    assert time.now == pytest.approx(50 + 1.0 + 0.5 + 0.01)
    time.now += 0.4  # host work overlaps with the second step
    executor.collect()
    assert time.now == pytest.approx(50 + 1.51 + 1.01)
    time.now += 9
    run(executor, StepPlan(3, (0,)))
    assert time.now == pytest.approx(61.52 + 1.01)


@hypothesis_settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**64 - 1),
    st.integers(1, 4),
    st.sampled_from([1, 3, 16]),
    st.sampled_from([2, 4]),
    st.booleans(),
)
def test_tokens_depend_on_seed_sample_and_position_alone(
    seed: int, n: int, budget: int, block_size: int, overlap: bool
) -> None:
    params = TokenParams(12, seed, n=n)
    tokens = generate(params)
    again = generate(params, max_num_batched_tokens=budget, block_size=block_size, overlap=overlap)
    assert tokens == again
    assert all(0 <= token < VOCAB for row in tokens for token in row)
    assert len({tuple(row) for row in tokens}) == n


def test_eos_comes_only_where_it_ends_a_request() -> None:
    for seed in range(30):
        assert EOS not in generate(TokenParams(40, seed))[0]  # ignore_eos leaves eos_token_ids empty
        early = generate(TokenParams(40, seed, eos_token_ids=(EOS,), stop_token_ids=(7,), min_tokens=30))[0]
        assert len(early) >= 30
        assert not {EOS, 7} & set(early[:30])
    ends = [generate(TokenParams(55, seed, eos_token_ids=(EOS,)))[0] for seed in range(30)]
    assert any(tokens[-1] == EOS and len(tokens) < 55 for tokens in ends)


def test_sampling_limits_are_obeyed() -> None:
    allowed = generate(TokenParams(30, 3, allowed_token_ids=(5, 6), logit_bias=((6, -100.0),)))[0]
    assert set(allowed) == {5}
    assert not set(range(40)) & set(generate(TokenParams(40, 3, bad_words=tuple((t,) for t in range(40))))[0])
    executor = device()
    start = replace(first_plan().starts[0], late_mask=True)
    mask = bytearray((VOCAB + 31) // 32 * 4)
    mask[11 >> 3] |= 1 << (11 & 7)
    assert run(executor, first_plan(starts=(start,)), s0=bytes(mask)) == [[11]]
    with pytest.raises(PlanError, match="wait for none"):
        run(device(), first_plan(), s0=bytes(mask))


def test_multi_token_bad_words_hold_through_late_masks() -> None:
    free = generate(TokenParams(20, 9))[0]
    banned = (free[3], free[4])
    tokens = generate(TokenParams(20, 9, bad_words=(banned,)))[0]
    assert tokens[:4] == free[:4]
    assert tokens[4] != free[4]


def test_logprobs_have_the_asked_shape() -> None:
    engine = Engine(settings(), device())
    engine.add(EngineRequest("r", (3, 4, 5, 6), TokenParams(3, 0, logprobs=2, prompt_logprobs=1)))
    deltas = []
    while engine.has_work:
        deltas += engine.step()
    assert [len(entry.top) for delta in deltas for entry in delta.logprobs or ()] == [2, 2, 2]
    assert all(d.logprobs and d.logprobs[0].token_id == d.token_ids[0] for d in deltas)
    scores = deltas[0].prompt_logprobs
    assert scores is not None
    assert [None if s is None else (s.token_id, len(s.top)) for s in scores] == [None, (4, 1), (5, 1), (6, 1)]
    assert deltas[-1].finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (StepPlan(1, (3,)), "slot 3 was never started"),
        (first_plan(blocks=(BlockUpdate(0, 0, 0, (7,)),)), "1 pages for 5 positions"),
        (first_plan(blocks=(BlockUpdate(0, 0, 0, (7, 0)),)), "page 0 is the null page"),
        (first_plan(blocks=(BlockUpdate(0, 0, 0, (7, 64)),)), "page 64 does not exist"),
        (first_plan(starts=(SlotStart(8, 0, TokenParams(8, 1), (1,), 1, 0),)), "slot 8 does not exist"),
        (first_plan(prefills=(Prefill(0, 1, (2, 3), ()),)), "holds 0 tokens; its prefill starts at 1"),
        (first_plan(decodes=(0,)), "computes twice"),
        (first_plan(prefills=(Prefill(0, 0, (1, 2, 3, 4, 5, 6), (0,)),)), "position 5 of 5 tokens"),
        (first_plan(copies=((1, 2), (3, 2))), "two copies into one page"),
        (first_plan(copies=((1, 7), (7, 8))), "source is another's target"),
        (first_plan(copies=((1, 9),)), "page 9 is copied into and enters no table"),
    ],
)
def test_plans_that_would_corrupt_a_device_are_refused(plan: StepPlan, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        run(device(), plan)


def test_two_slots_may_not_write_one_page() -> None:
    starts = tuple(SlotStart(slot, 0, TokenParams(8, 1), (1, 2), 2, 0) for slot in (0, 1))
    prefills = tuple(Prefill(slot, 0, (1, 2), (slot,)) for slot in (0, 1))
    blocks = (BlockUpdate(0, 0, 0, (7,)), BlockUpdate(0, 1, 0, (7,)))
    with pytest.raises(PlanError, match="slots 0 and 1 both write page 7"):
        run(device(), StepPlan(1, (), prefills, starts, blocks))


def test_a_decode_needs_a_sampled_token() -> None:
    executor = device()
    run(executor, first_plan(prefills=(Prefill(0, 0, (1, 2, 3, 4, 5), ()),)))
    with pytest.raises(PlanError, match="position 5 of 5 tokens"):
        executor.launch(StepPlan(2, (0,)))


def test_steps_form_a_queue_of_two() -> None:
    executor = device()
    with pytest.raises(PlanError, match="collect without"):
        executor.collect()
    executor.launch(first_plan())
    with pytest.raises(PlanError, match="was not sampled"):
        executor.launch(StepPlan(2, (0,)))
    executor.sample({})
    executor.launch(StepPlan(2, (0,)))
    executor.sample({})
    with pytest.raises(PlanError, match="not collected"):
        executor.launch(StepPlan(3, (0,)))


def test_no_torch() -> None:
    code = "import sys, thranite.engine.null_executor, thranite.engine.engine; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0
