"""Where requests' time goes, by a clock that the test turns."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.paged_executor import PagedExecutor, settings
from thranite.engine.engine import Engine
from thranite.engine.histograms import BOUNDS, Histogram, HistogramCounts
from thranite.engine.plan import StepResult
from thranite.request import EngineRequest
from thranite.sampling_params import TokenParams

STEP = 0.25


class _SlowDevice(PagedExecutor):
    """Every step takes a quarter of a second of the test's clock."""

    def __init__(self, clock: list[float]) -> None:
        super().__init__(settings(max_num_seqs=2, max_num_batched_tokens=8))
        self._clock = clock

    def collect(self) -> StepResult:
        self._clock[0] += STEP
        return super().collect()


def run(*requests: EngineRequest, arrival: float | None = None) -> dict[str, HistogramCounts]:
    now = [100.0]
    config = settings(max_num_seqs=2, max_num_batched_tokens=8)
    engine = Engine(config, _SlowDevice(now), lambda: now[0])
    for request in requests:
        engine.add(request, arrival)
    while engine.has_work:
        engine.step()
    return dict(engine.stats().histograms)


def request(name: str, prompt: int, max_tokens: int, n: int = 1) -> EngineRequest:
    return EngineRequest(name, tuple(range(1, prompt + 1)), TokenParams(max_tokens, 0, n=n))


def bucket(name: str, counts: HistogramCounts) -> float:
    """The upper bound of the only bucket that holds something."""
    [place] = [index for index, count in enumerate(counts.counts) if count]
    return BOUNDS[name][place]


def test_a_request_s_stretches() -> None:
    """Prompt of 12 at 8 a step: two steps to the first token, three more for the rest."""
    found = run(request("a", 12, 4))
    for name, seconds in (
        ("queue_seconds", 0.0),
        ("first_token_seconds", 2 * STEP),
        ("prefill_seconds", 2 * STEP),
        ("decode_seconds", 3 * STEP),
        ("inference_seconds", 5 * STEP),
        ("request_seconds", 5 * STEP),
        ("request_token_seconds", STEP),
        ("prompt_tokens", 12),
        ("generation_tokens", 4),
        ("params_max_tokens", 4),
        ("params_n", 1),
    ):
        assert found[name].observations == 1, name
        assert found[name].total == pytest.approx(seconds), name
        assert bucket(name, found[name]) >= seconds
    assert (found["inter_token_seconds"].observations, found["inter_token_seconds"].total) == (3, 3 * STEP)
    assert (found["step_tokens"].observations, found["step_tokens"].total) == (5, 12 + 3)


def test_a_request_that_waits_has_queued() -> None:
    found = run(request("a", 4, 3), request("b", 4, 3), request("c", 4, 1))
    assert found["queue_seconds"].observations == 3
    assert found["queue_seconds"].total >= 3 * STEP


def test_samples_are_one_request_and_several_sequences() -> None:
    found = run(request("a", 4, 3, n=2))
    assert found["first_token_seconds"].observations == found["request_seconds"].observations == 1
    assert found["inter_token_seconds"].observations == 4
    assert (found["generation_tokens"].total, found["longest_generation_tokens"].total) == (6, 3)


def test_what_never_began_is_left_out() -> None:
    now = [0.0]
    config = settings(max_num_seqs=2)
    engine = Engine(config, PagedExecutor(config), lambda: now[0])
    engine.add(replace(request("a", 4, 3), timeout_seconds=1.0))
    now[0] = 5.0
    engine.step()
    found = engine.stats().histograms
    assert (found["request_seconds"].observations, found["request_seconds"].total) == (1, 5.0)
    assert not any(found[name].observations for name in ("queue_seconds", "first_token_seconds", "decode_seconds"))


def test_bounds_are_closed_above() -> None:
    histogram = Histogram((1.0, 2.0))
    for value, times in ((1.0, 2), (1.5, 1), (9.0, 3)):
        histogram.observe(value, times)
    assert histogram.snapshot() == HistogramCounts((2, 1, 3), 30.5)
    assert all(list(bounds) == sorted(set(bounds)) for bounds in BOUNDS.values())


def test_what_a_request_waited_for_the_step_loop_counts() -> None:
    found = run(request("a", 5, 1), arrival=99.5)
    assert found["queue_seconds"].total == pytest.approx(0.5)
    assert found["first_token_seconds"].total == pytest.approx(0.5 + STEP)
    assert found["prefill_seconds"].total == pytest.approx(STEP)
    assert run(request("a", 5, 1), arrival=101.0)["queue_seconds"].total == 0.0  # no clock runs ahead
