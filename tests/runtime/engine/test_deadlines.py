"""Deadlines pass once, for open requests alone, and what has ended leaves nothing behind."""

from __future__ import annotations

from tests.support.paged_executor import settings
from thranite.engine.engine import Engine
from thranite.engine.null_executor import NullExecutor, NullPace
from thranite.request import EngineRequest, FinishReason
from thranite.sampling_params import TokenParams


def make(now: list[float]) -> Engine:
    chosen = settings()
    return Engine(chosen, NullExecutor(chosen, NullPace()), clock=lambda: now[0])


def request(name: str, seconds: float, max_tokens: int = 1) -> EngineRequest:
    return EngineRequest(name, (1, 2), TokenParams(max_tokens, 0), 0, seconds)


def test_ended_requests_leave_nothing() -> None:
    engine = make([0.0])
    for number in range(3000):
        engine.add(request(str(number), 86400.0))
        while engine.has_work:
            engine.step()
    assert len(engine._deadlines) < 100


def test_an_id_that_is_used_again_has_its_own_deadline() -> None:
    now = [0.0]
    engine = make(now)
    engine.add(request("x", 1.0, 9))
    engine.abort("x")
    engine.add(request("x", 5.0, 9))
    now[0] = 2.0
    assert all(delta.finish_reason is None for delta in engine.step())
    now[0] = 6.0
    ends = [(delta.request_id, delta.finish_reason) for delta in engine.step() if delta.finish_reason]
    assert ends == [("x", FinishReason.TIMEOUT)]
    while engine.has_work:
        engine.step()
    engine.check_integrity()
