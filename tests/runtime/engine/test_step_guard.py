"""An exception inside a step ends the engine: nothing goes on from what it left half-way, and its cause is repeated."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable
from typing import NoReturn

import pytest

from tests.support.paged_executor import PagedExecutor, settings
from thranite.engine.batch import Batch
from thranite.engine.engine import Engine
from thranite.engine.plan import StepPlan
from thranite.errors import EngineDead, InvalidRequest
from thranite.request import EngineRequest
from thranite.sampling_params import TokenParams


def request(name: str) -> EngineRequest:
    return EngineRequest(name, tuple(range(12)), TokenParams(8, seed=0))


def make(overlap: bool = True) -> tuple[Engine, PagedExecutor]:
    config = settings(overlap=overlap)
    device = PagedExecutor(config)
    return Engine(config, device), device


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyboardInterrupt(), "half-way by KeyboardInterrupt$"),
        (MemoryError("no pages"), "half-way by MemoryError: no pages$"),
        (InvalidRequest("not this one"), "InvalidRequest: not this one$"),
        (EngineDead("rank 1 was killed by SIGKILL"), "rank 1 was killed by SIGKILL$"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
@pytest.mark.parametrize("where", ["plan", "launch", "sample", "collect"])
@pytest.mark.parametrize("overlap", [True, False])
def test_a_step_left_half_way_is_the_last(
    overlap: bool, where: str, error: BaseException, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, device = make(overlap)
    engine.add(request("r"))
    engine.step()
    engine.step()
    owner = engine.scheduler if where == "plan" else device
    inner = getattr(owner, where)

    def fails(*given: object) -> NoReturn:
        inner(*given)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(owner, where, fails)
        with pytest.raises(type(error)) as first:
            engine.step()
    assert first.value is error
    engine.abort("r")  # as callers do, and no error of its own
    launched = len(device.plans)
    calls: list[Callable[[], object]] = [
        engine.step,
        engine.step,
        engine.sleep,
        lambda: engine.add(request("s")),
        lambda: Batch(engine).add([request("t")]),
    ]
    for call in calls:
        with pytest.raises(EngineDead, match=said) as again:
            call()
        assert again.value.__cause__ is error
    assert len(device.plans) == launched


def test_a_step_within_a_step_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a handler of signals might try."""
    engine, device = make()
    engine.add(request("r"))
    monkeypatch.setattr(device, "launch", lambda _: engine.step())
    with pytest.raises(EngineDead, match="has not ended"):
        engine.step()


def test_a_closed_engine_keeps_nothing_of_what_a_failed_step_held(monkeypatch: pytest.MonkeyPatch) -> None:
    class Activations:
        pass

    held: list[weakref.ref[Activations]] = []

    def fails(_: StepPlan) -> NoReturn:
        activations = Activations()
        held.append(weakref.ref(activations))
        raise RuntimeError("out of memory")

    engine, device = make()
    engine.add(request("r"))
    monkeypatch.setattr(device, "launch", fails)
    with contextlib.suppress(RuntimeError):  # `pytest.raises` would keep it
        engine.step()
    engine.close()
    gc.collect()
    assert held[0]() is None
    for call in (engine.step, engine.sleep, lambda: engine.add(request("later"))):
        with pytest.raises(
            EngineDead, match="close it and make another; a step was left half-way by RuntimeError: out of"
        ):
            call()


def test_a_sleep_left_half_way_is_the_last_of_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """To wake it would serve from memory half given away."""
    engine, device = make()

    def fails() -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(device, "sleep", fails)
    with pytest.raises(KeyboardInterrupt):
        engine.sleep()
    with pytest.raises(EngineDead, match="half-way by KeyboardInterrupt"):
        engine.wake()
