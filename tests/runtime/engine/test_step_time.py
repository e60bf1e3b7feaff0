"""The stall rule's allowance: generous where little is known, never below ten seconds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thranite.engine.step_time import FIRST_STEP_SECONDS, MIN_ALLOWED_SECONDS, StepLoad, StepTimeFit


def model(load: StepLoad, base: float, per_token: float, per_context: float) -> float:
    return base + per_token * load.tokens + per_context * load.context


def seen(largest: int = 512) -> list[StepLoad]:
    return [StepLoad(1 + i * 37 % largest, i * 911 % 50_000) for i in range(200)]


def trained(base: float, per_token: float, per_context: float, largest: int = 512) -> StepTimeFit:
    fit = StepTimeFit()
    for load in seen(largest):
        fit.observe(load, model(load, base, per_token, per_context))
    return fit


@settings(deadline=None, max_examples=30)
@given(
    st.floats(1e-3, 0.1),
    st.floats(1e-5, 1e-3),
    st.floats(0, 1e-6),
    st.integers(1, max(load.tokens for load in seen())),
    st.integers(0, max(load.context for load in seen())),
)
def test_the_fit_finds_a_linear_cost(
    base: float, per_token: float, per_context: float, tokens: int, context: int
) -> None:
    load = StepLoad(tokens, context)
    expected = model(load, base, per_token, per_context)
    assert trained(base, per_token, per_context).predict(load) == pytest.approx(expected, rel=0.1, abs=2e-3)


def test_allowance() -> None:
    assert StepTimeFit().allowed(StepLoad(1, 0)) == FIRST_STEP_SECONDS
    assert trained(0.01, 1e-4, 0).allowed(StepLoad(100, 0)) == MIN_ALLOWED_SECONDS
    assert trained(2.0, 0.0, 0).allowed(StepLoad(100, 0)) == pytest.approx(40, rel=0.05)


def test_a_load_far_beyond_what_was_seen_is_allowed_in_proportion() -> None:
    """Decode steps of 0.8 s say nothing about a prompt of 2,048 tokens, which may take 2,048 times as long."""
    fit = StepTimeFit()
    for _ in range(100):
        fit.observe(StepLoad(1, 100), 0.8)
    assert fit.allowed(StepLoad(2048, 100)) >= 20 * 0.8 * 2000
    assert fit.allowed(StepLoad(1, 100)) == pytest.approx(16, rel=0.05)


def test_the_fit_follows_a_machine_that_becomes_slower() -> None:
    fit = trained(0.1, 0.0, 0.0)
    for i in range(300):
        fit.observe(StepLoad(1 + i % 100, 0), 3.0)
    assert fit.predict(StepLoad(50, 0)) == pytest.approx(3.0, rel=0.1)
