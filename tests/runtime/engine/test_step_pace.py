"""Steps are planned as late as their predecessors allow: a whole engine on the null device, in a time of its own."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.support.paged_executor import settings
from thranite.engine.engine import Engine
from thranite.engine.null_executor import NullExecutor, NullPace
from thranite.engine.plan import StepPlan
from thranite.engine.step_pace import CAUTION, LAST_STEPS, LONG_PROMPT, MARGIN, PROMPT_CAUTION, WEARS_OFF, StepPace
from thranite.engine.step_time import StepLoad
from thranite.request import EngineRequest
from thranite.sampling_params import TokenParams

HOST = 0.0003  # seconds to plan and launch
STEP, TOKEN, ROW = 0.0046, 26e-6, 40e-6
LIMITS: dict[str, Any] = {
    "num_blocks": 6000,
    "max_num_seqs": 256,
    "max_num_batched_tokens": 4096,
    "max_model_len": 1024,
}
SETTINGS = settings(block_size=32, overlap=True, **LIMITS)


class Time:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Device(NullExecutor):
    """Launching takes the host time; `busy` counts the seconds of all steps."""

    def __init__(self, time: Time, pace: Callable[[StepPlan], float]) -> None:
        super().__init__(SETTINGS, NullPace(), clock=time, sleep=time.sleep)
        self._time, self._seconds = time, pace
        self._pace = self  # type: ignore[assignment]
        self.busy = 0.0

    def seconds(self, plan: StepPlan) -> float:
        seconds = self._seconds(plan)
        self.busy += seconds
        return seconds

    def launch(self, plan: StepPlan) -> None:
        self._time.sleep(HOST)
        super().launch(plan)


def usual(plan: StepPlan) -> float:
    prompts = sum(len(prefill.token_ids) for prefill in plan.prefills)
    return STEP + TOKEN * prompts + ROW * (len(plan.decodes) + len(plan.prefills))


@dataclass(slots=True)
class Run:
    first_tokens: list[float] = field(default_factory=list)  # seconds from coming to the first token
    seconds: float = 0.0
    busy: float = 0.0

    @property
    def mean(self) -> float:
        return sum(self.first_tokens) / len(self.first_tokens)


def serve(
    rate: float,
    count: int,
    waits: bool,
    pace: Callable[[StepPlan], float] = usual,
    oversleeps: Callable[[], float] = lambda: 0.0,
) -> Run:
    """Poisson arrivals at an engine that is driven as EngineLoop drives it. `oversleeps`: seconds after each wait."""
    time, draw, run = Time(), random.Random(3), Run()
    device = Device(time, pace)
    engine = Engine(SETTINGS, device, clock=time)
    begun, at = time.now, time.now
    coming = []
    for number in range(count):
        at += draw.expovariate(rate)
        prompt = tuple(draw.randint(3, 60) for _ in range(draw.randint(200, 800)))
        coming.append((at, EngineRequest(f"r{number}", prompt, TokenParams(draw.randint(64, 200), number))))
    came: dict[str, float] = {}
    while coming or engine.has_work:
        due = engine.plan_at if waits else 0.0
        if not engine.has_work:
            due = coming[0][0]
        while coming and coming[0][0] <= max(due, time.now):
            arrival, request = coming.pop(0)
            time.now = max(time.now, arrival)
            came[request.request_id] = arrival
            engine.add(request)
            due = engine.plan_at if waits else 0.0
        if due > time.now:
            time.now = due + oversleeps()
        for delta in engine.step():
            if delta.request_id in came:
                run.first_tokens.append(time.now - came.pop(delta.request_id))
    run.seconds, run.busy = time.now - begun, device.busy
    return run


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
