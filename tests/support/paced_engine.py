"""A whole engine on the null device, in a time of its own."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.support.paged_executor import settings
from thranite.engine.engine import Engine
from thranite.engine.null_executor import NullExecutor, NullPace
from thranite.engine.plan import StepPlan
from thranite.engine.settings import EngineSettings
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
    """A clock that only sleeping and the test move."""

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
    next_tokens: list[float] = field(default_factory=list)  # seconds since the token before
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
    limits: EngineSettings = SETTINGS,
) -> Run:
    """Poisson arrivals at an engine that is driven as EngineLoop drives it. `oversleeps`: seconds after each wait."""
    time, draw, run = Time(), random.Random(3), Run()
    device = Device(time, pace)
    engine = Engine(limits, device, clock=time)
    begun, at = time.now, time.now
    coming = []
    for number in range(count):
        at += draw.expovariate(rate)
        prompt = tuple(draw.randint(3, 60) for _ in range(draw.randint(200, 800)))
        coming.append((at, EngineRequest(f"r{number}", prompt, TokenParams(draw.randint(64, 200), number))))
    came: dict[str, float] = {}
    last: dict[str, float] = {}
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
            else:
                run.next_tokens.append(time.now - last[delta.request_id])
            last[delta.request_id] = time.now
    run.seconds, run.busy = time.now - begun, device.busy
    return run
