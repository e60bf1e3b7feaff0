"""Steps are planned as late as their predecessors allow: a whole engine on the null device, in a time of its own."""

from __future__ import annotations

import random

import pytest

from tests.support.paced_engine import HOST, LIMITS, SETTINGS, STEP, Device, Time, serve, usual
from thranite.engine.engine import Engine
from thranite.engine.plan import StepPlan
from thranite.engine.step_pace import CAUTION, LAST_STEPS, LONG_PROMPT, MARGIN, PROMPT_CAUTION, WEARS_OFF, StepPace
from thranite.engine.step_time import StepLoad
from thranite.request import EngineRequest
from thranite.sampling_params import TokenParams


@pytest.mark.parametrize(("rate", "count"), [(4.0, 60), (16.0, 150), (32.0, 200)])
def test_first_tokens_come_earlier_and_the_device_works_as_before(rate: float, count: int) -> None:
    at_once, late = serve(rate, count, waits=False), serve(rate, count, waits=True)
    print(f"{rate}/s: mean {1e3 * at_once.mean:.1f} -> {1e3 * late.mean:.1f} ms", end=", ")
    print(f"{at_once.seconds:.2f} -> {late.seconds:.2f} s")
    assert late.mean < at_once.mean - 0.7 * STEP
    assert late.seconds < 1.002 * at_once.seconds


@pytest.mark.parametrize(("least", "most", "lost"), [(0.95, 1.05, 0.0002), (0.9, 1.3, 0.005)])
def test_steps_that_vary_leave_the_device_little_to_wait_for(least: float, most: float, lost: float) -> None:
    """All requests are there from the beginning: whatever is not busy was lost by waiting."""
    draw = random.Random(5)

    def uneven(plan: StepPlan) -> float:
        return usual(plan) * draw.uniform(least, most)

    run = serve(1e9, 200, waits=True, pace=uneven)
    assert run.seconds < (1 + lost) * run.busy


def test_a_host_that_wakes_late_learns_to_plan_earlier() -> None:
    """One wake-up in ten comes 3 ms late, the others up to 0.2 ms."""
    draw = random.Random(7)
    run = serve(1e9, 200, waits=True, oversleeps=lambda: 0.003 if draw.random() < 0.1 else draw.uniform(0, 0.0002))
    assert run.seconds < 1.002 * run.busy


def test_steps_that_become_shorter_at_once_are_noticed_at_once() -> None:
    pace = StepPace()
    pace.launched(0, HOST)
    for step in range(LAST_STEPS):
        pace.read(0, 0.0, 0.010 * (step + 1), waited=0.005)
    ended = 0.010 * LAST_STEPS
    assert pace.plan_at(0, 0.0) == pytest.approx(ended + CAUTION * 0.010 - HOST - MARGIN)
    pace.read(0, 0.0, ended + 0.010, waited=0.0)  # it had ended before it was read
    assert pace.plan_at(0, 0.0) == 0.0
    pace.read(0, 0.0, ended + 0.014, waited=0.003)
    margin = 2 * MARGIN * WEARS_OFF
    assert pace.plan_at(0, 0.0) == pytest.approx(ended + 0.014 + CAUTION * 0.004 - HOST - margin)


def test_prompts_prolong_a_step_by_what_the_cheapest_took() -> None:
    pace = StepPace()
    pace.launched(0, HOST)
    pace.launched(500, 0.1)  # the device ran meanwhile
    pace.read(0, 0.0, 1.0, waited=0.005)
    pace.read(0, 1.1, 1.105, waited=0.005)
    pace.read(1000, 1.105, 1.135, waited=0.005)  # 25 us a token
    pace.read(500, 1.135, 1.150, waited=0.005)  # 20 us
    pace.read(LONG_PROMPT - 1, 1.150, 1.1501, waited=0.005)  # too short to tell
    assert pace.plan_at(0, 1.15) == pytest.approx(1.1501 + CAUTION * 0.005 - HOST - MARGIN)
    assert pace.plan_at(2000, 1.15) == pytest.approx(
        1.1501 + CAUTION * 0.005 + PROMPT_CAUTION * 2000 * 20e-6 - HOST - MARGIN
    )


def test_an_engine_waits_only_for_requests_that_could_join() -> None:
    time = Time()
    engine = Engine(SETTINGS, Device(time, usual), clock=time)
    for number in range(LIMITS["max_num_seqs"] - 1):
        engine.add(EngineRequest(f"r{number}", (3, 4), TokenParams(500, number)))
    assert engine.plan_at == 0.0
    for _ in range(5):
        engine.step()
    assert engine.plan_at > time.now
    engine.add(EngineRequest("last", (3, 4), TokenParams(500, 1)))
    assert engine.plan_at == 0.0  # it waits already
    for _ in range(5):
        engine.step()
    assert engine.plan_at == 0.0  # every slot is taken


def test_the_load_of_the_coming_step() -> None:
    engine = Engine(SETTINGS, Device(Time(), usual))
    assert engine.load(100) == StepLoad(0, 0)
    for number in range(3):
        engine.add(EngineRequest(f"r{number}", tuple(range(3, 43)), TokenParams(50, number)))
    assert engine.load(100) == StepLoad(100, 0)
    assert engine.load(1000) == StepLoad(120, 0)
    for _ in range(3):
        engine.step()
    assert engine.load(1000) == StepLoad(3, 4 * 32)  # their first page is one
