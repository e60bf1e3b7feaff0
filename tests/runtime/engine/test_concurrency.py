"""The limit that keeps to a target for inter-token latency, against devices of known speed."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.support.paged_executor import PagedExecutor, settings
from thranite.engine.concurrency import FIRST, WINDOW_STEPS, ConcurrencyLimit
from thranite.engine.engine import Engine
from thranite.request import EngineRequest
from thranite.sampling_params import TokenParams

Device = Callable[[int], float]  # rows → seconds of a step


def linear(rows: int) -> float:
    return 0.005 + 0.0002 * rows


def quadratic(rows: int) -> float:
    return 0.004 + 0.000002 * rows * rows


def run(limit: ConcurrencyLimit, device: Device, steps: int, demand: int = 10_000) -> list[int]:
    """Rows of each step, where all that may run does."""
    rows = []
    for _ in range(steps):
        rows.append(min(limit.limit, demand))
        limit.observe(device(rows[-1]), rows[-1], limited=demand > limit.limit)
    return rows


@pytest.mark.parametrize(("device", "best"), [(linear, 100), (quadratic, 102)])
def test_it_climbs_to_the_most_that_meets_the_target(device: Device, best: int) -> None:
    limit = ConcurrencyLimit(0.025, 1024)
    rows = run(limit, device, 40 * WINDOW_STEPS)
    settled = rows[20 * WINDOW_STEPS :]
    assert min(settled) >= 0.88 * best
    assert max(device(n) for n in settled) <= 0.025
    assert rows[12 * WINDOW_STEPS] > 0.8 * best  # quickly


def test_it_follows_a_device_that_slows_down_and_recovers() -> None:
    limit = ConcurrencyLimit(0.025, 1024)
    run(limit, linear, 40 * WINDOW_STEPS)
    slow = run(limit, lambda rows: 2 * linear(rows), 40 * WINDOW_STEPS)
    assert slow[-1] == pytest.approx(34, abs=3)
    assert run(limit, linear, 40 * WINDOW_STEPS)[-1] >= 86


def test_noise_and_single_long_steps_do_not_move_it_far() -> None:
    noise = random.Random(3)
    limit = ConcurrencyLimit(0.025, 1024)

    def device(rows: int) -> float:
        return linear(rows) * noise.uniform(0.97, 1.03) + (0.2 if noise.random() < 0.1 else 0.0)

    settled = run(limit, device, 200 * WINDOW_STEPS)[40 * WINDOW_STEPS :]
    assert min(settled) > 70
    assert max(settled) < 115


def test_without_demand_it_does_not_grow() -> None:
    limit = ConcurrencyLimit(0.025, 1024)
    assert run(limit, linear, 20 * WINDOW_STEPS, demand=5)[-1] == 5
    assert limit.limit == FIRST


def test_a_target_out_of_reach_does_not_end_the_service() -> None:
    limit = ConcurrencyLimit(0.001, 1024)
    assert run(limit, linear, 20 * WINDOW_STEPS)[-1] == FIRST


def test_slots_bound_it() -> None:
    assert run(ConcurrencyLimit(10.0, 40), linear, 20 * WINDOW_STEPS)[-1] == 40


def test_the_engine_keeps_to_it() -> None:
    """A token every millisecond of the test's clock: nothing meets the target, so no more than the first few run."""
    now = [0.0]

    def clock() -> float:
        now[0] += 0.001
        return now[0]

    config = settings(max_num_seqs=16, target_inter_token_seconds=1e-6, num_blocks=400)
    engine = Engine(config, PagedExecutor(config), clock)
    for number in range(16):
        engine.add(EngineRequest(str(number), (1, 2), TokenParams(40, 0)))
    most = 0
    while engine.has_work:
        engine.step()
        most = max(most, engine.stats().requests_running)
        engine.check_integrity()
    assert most == FIRST
    assert engine.stats().concurrency_limit == FIRST
