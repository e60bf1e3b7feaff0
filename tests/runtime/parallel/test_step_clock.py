"""When rank 0 counts as hung, on a clock that the test moves."""

from __future__ import annotations

from thranite.engine.step_time import FIRST_STEP_SECONDS, REST_SECONDS
from thranite.parallel.step_clock import StepClock


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_is_no_step_has_a_time_of_its_own_and_teaches_nothing_of_steps() -> None:
    time = Time()
    clock = StepClock(time)
    for _ in range(50):
        clock.plan(64)
        clock.enter()
        time.now += 0.01
        clock.leave()
    clock.plan(64)
    clock.enter()
    time.now += FIRST_STEP_SECONDS / 2
    verdict = clock.verdict()
    assert verdict is not None
    assert "no step finished for 300.0 s" in verdict
    clock.leave()
    clock.allow(REST_SECONDS)
    clock.enter()
    time.now += REST_SECONDS - 1
    assert clock.verdict() is None
    time.now += 2
    assert clock.verdict() is not None
    clock.leave()
    clock.plan(64)
    clock.enter()
    time.now += FIRST_STEP_SECONDS
    assert clock.verdict() is not None
