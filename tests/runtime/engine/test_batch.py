"""Requests of a batch are queued while others run, and nothing but the time of queueing tells."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.runtime.engine.test_engine_properties import engine_settings, requests
from tests.runtime.engine.test_held_constraints import Maker
from tests.support.paged_executor import VOCAB, PagedExecutor, settings
from thranite.engine.batch import Batch
from thranite.engine.engine import Engine
from thranite.engine.plan import StepPlan
from thranite.errors import InvalidRequest, Rejected
from thranite.request import EngineRequest, Grammar, SequenceDelta
from thranite.sampling_params import TokenParams


def waiting(count: int, prompt: int = 8) -> list[EngineRequest]:
    return [EngineRequest(f"r{i}", tuple(range(i, i + prompt)), TokenParams(4, seed=i)) for i in range(count)]


def finish(engine: Engine, device: PagedExecutor) -> tuple[list[StepPlan], list[SequenceDelta]]:
    deltas = []
    while engine.has_work:
        deltas += engine.step()
        engine.check_integrity()
    return device.plans, deltas


@hypothesis_settings(max_examples=150, deadline=None)
@given(st.data())
def test_steps_are_those_of_a_queue_that_holds_all(data: st.DataObject) -> None:
    config = data.draw(engine_settings())
    feed = [replace(request, priority=0) for request in data.draw(requests(config.max_model_len - 1))]
    runs = []
    for at_once in (True, False):
        device = PagedExecutor(config)
        engine = Engine(config, device)
        if at_once:
            for request in feed:
                engine.add(request)
        else:
            Batch(engine).add(feed)
        runs.append((*finish(engine, device), engine.stats().requests_received_total))
    assert runs[0] == runs[1]


def test_the_first_step_waits_for_what_it_has_room_for() -> None:
    engine = Engine(settings(max_num_batched_tokens=16), PagedExecutor(settings()))
    Batch(engine).add(waiting(6))
    assert len(engine.scheduler.queue) == 1
    engine.step()
    assert (len(engine.scheduler.running), len(engine.scheduler.queue)) == (2, 0)
    assert engine.stats().requests_received_total == 2


def test_requests_with_grammars_wait_in_the_queue_where_they_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(settings(grammars=Maker()), PagedExecutor(settings()))
    added: list[str] = []
    monkeypatch.setattr(engine, "add", lambda request, arrival: added.append(request.request_id))
    first, second, third = waiting(3)
    Batch(engine).add([first, second, replace(third, grammar=Grammar("start: /a/"))])
    assert added == ["r0", "r1", "r2"]


def test_what_is_left_of_a_cancelled_batch_is_not_queued() -> None:
    engine, feed = Engine(settings(), PagedExecutor(settings())), waiting(6)
    batch = Batch(engine)
    batch.add(feed)
    engine.step()
    batch.end()
    for request in feed:
        engine.abort(request.request_id)
    while engine.has_work:
        assert engine.step() == []
    engine.check_integrity()
    assert engine.stats().requests_received_total == 2


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        (EngineRequest("wrong", (1, 2), TokenParams(4, seed=0, n=9)), "n"),
        (EngineRequest("wrong", (1, VOCAB), TokenParams(4, seed=0)), "prompt"),
        (EngineRequest("wrong", (1,) * 64, TokenParams(4, seed=0)), "prompt"),
        (EngineRequest("wrong", (), TokenParams(4, seed=0)), "prompt"),
        (EngineRequest("wrong", (1,), TokenParams(4, seed=0), grammar=Grammar("g")), "structured_outputs"),
    ],
)
def test_a_later_request_that_can_never_run_is_refused_by_name_before_any_runs(
    wrong: EngineRequest, param: str
) -> None:
    engine, feed = Engine(settings(), PagedExecutor(settings())), waiting(6)
    batch = Batch(engine)
    with pytest.raises(InvalidRequest, match="request 'wrong': ") as refused:
        batch.add([*feed, wrong])
    assert refused.value.param == param
    batch.end()
    assert not engine.has_work
    assert engine.stats().requests_received_total == 0
    Batch(engine).add(feed)
    while engine.has_work:
        engine.step()
    assert engine.stats().requests_finished_total["length"] == len(feed)


def test_two_of_one_id_are_refused_before_any_runs() -> None:
    """The second would be refused in the midst of a step, and that is an engine's last."""
    engine, feed = Engine(settings(), PagedExecutor(settings())), waiting(6)
    batch = Batch(engine)
    with pytest.raises(InvalidRequest, match=f"request '{feed[0].request_id}': its id is another's") as refused:
        batch.add([*feed, feed[0]])
    assert refused.value.param == "request_id"
    batch.end()
    assert not engine.has_work


def test_an_engine_that_takes_nothing_refuses_a_batch() -> None:
    engine = Engine(settings(), PagedExecutor(settings()))
    engine.set_sleepy(True)
    batch = Batch(engine)
    with pytest.raises(Rejected, match="asleep"):
        batch.add(waiting(3))
    batch.end()
    assert not engine.has_work
