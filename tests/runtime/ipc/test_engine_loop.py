"""The step loop without sockets: commands apply between steps, and nothing is said to those who left."""

from __future__ import annotations

import threading
import time
from functools import partial
from queue import SimpleQueue
from typing import Any

import pytest

from tests.support.fake_stepping_engine import BOOM, FakeEngine
from tests.support.waiting import wait_for
from thranite.engine.step_time import PREPARE_SECONDS, REST_SECONDS
from thranite.ipc.engine_loop import Closed, Command, EngineLoop, Quit, SetDraining, SetSleeping
from thranite.ipc.messages import Abort, Accepted, Add, GetStats, Refused, Stats, Stop
from thranite.request import EngineRequest, FinishReason, SequenceDelta
from thranite.sampling_params import TokenParams


class Harness:
    """A loop whose inbox is scripted: `script[i]` is what arrives before step i."""

    def __init__(self, engine: FakeEngine | None = None) -> None:
        self.engine = engine or FakeEngine()
        self.inbox: SimpleQueue[tuple[int, Command]] = SimpleQueue()
        self.sent: list[tuple[int, Any]] = []
        self.loop = EngineLoop(self.engine, self.inbox, lambda c, m: self.sent.append((c, m)), max_step_tokens=64)

    def run(self, *script: list[tuple[int, Command]]) -> list[tuple[int, Any]]:
        """Apply the script, one entry a step, then quit."""
        quitting: list[tuple[int, Command]] = [(0, Quit())]
        steps = iter([*script[1:], quitting])
        step = self.engine.step

        def scripted_step() -> Any:
            deltas = step()
            for item in next(steps, []):
                self.inbox.put(item)
            return deltas

        self.engine.step = scripted_step  # type: ignore[method-assign]
        for item in script[0]:
            self.inbox.put(item)
        self.loop.run()
        return self.sent

    def tokens(self, connection: int, handle: int) -> list[int]:
        rows = [row for c, m in self.sent if c == connection and isinstance(m, tuple) for row in m]
        return [token for h, delta in rows if h == handle for token in delta.token_ids]


def add(handle: int, name: str, max_tokens: int = 50, n: int = 1, prompt: tuple[int, ...] = (5,)) -> Add:
    return Add(handle, EngineRequest(name, prompt, TokenParams(max_tokens, 0, n=n)))


def test_admission_is_answered_before_work_and_deltas_go_to_their_connection() -> None:
    harness = Harness()
    sent = harness.run([(1, add(7, "a", 2)), (2, add(7, "b", 2)), (1, add(8, "c", prompt=()))], [])
    assert sent[:2] == [(1, Accepted(7)), (2, Accepted(7))]
    assert sent[2] == (1, Refused(8, "invalid", "the prompt is empty", "prompt", "empty"))
    assert harness.tokens(1, 7) == [10, 11]
    assert harness.tokens(2, 7) == [10, 11]
    assert [len(m) for _, m in sent[3:]] == [1, 1, 1, 1]  # one frame a step and connection


def test_refusals() -> None:
    harness = Harness(FakeEngine(max_requests=1))
    sent = harness.run([(1, add(1, "a")), (1, add(2, "a")), (1, add(3, "b")), (0, SetDraining(True)), (1, add(4, "c"))])
    kinds = [(m.kind, m.param, m.reason, m.retry_after_seconds) for _, m in sent if isinstance(m, Refused)]
    assert kinds == [
        ("invalid", "request_id", "", None),
        ("rejected", None, "queue_full", 3.0),
        ("rejected", None, "draining", None),
    ]


def test_nothing_follows_an_abort_a_stop_or_a_closed_connection() -> None:
    harness = Harness()
    harness.run(
        [(1, add(1, "a")), (1, add(2, "b", n=2)), (2, add(1, "c")), (2, add(2, "d"))],
        [(1, Abort(1)), (1, Stop(2, 0))],
        [(2, Closed())],
        [(1, Abort(99)), (1, Stop(1, 0))],  # unknown, and already gone
    )
    assert harness.tokens(1, 1) == [10]
    assert sorted(harness.tokens(1, 2)) == [10, 10, 11, 12, 13]  # sample 1 went on
    assert harness.tokens(2, 1) == harness.tokens(2, 2) == [10, 11]
    assert harness.engine.finished["abort"] == 3


def test_late_deltas_of_an_aborted_request_are_dropped() -> None:
    """An engine with a step in flight may still bring tokens of a request that was aborted meanwhile."""
    harness = Harness()
    harness.engine.abort = lambda request_id: None  # type: ignore[method-assign]
    harness.run([(1, add(1, "a", 4))], [(1, Abort(1))], [], [])
    assert harness.tokens(1, 1) == [10]


def test_finish_ends_the_route_so_that_the_id_is_free_again() -> None:
    harness = Harness()
    sent = harness.run([(1, add(1, "a", 1)), (1, add(9, "z"))], [(1, add(2, "a", 1))], [])
    assert [m for _, m in sent if isinstance(m, Accepted)] == [Accepted(1), Accepted(9), Accepted(2)]
    ends = [d.finish_reason for _, m in sent if isinstance(m, tuple) for h, d in m if h in (1, 2)]
    assert ends == [FinishReason.LENGTH] * 2


def test_idle_loop_sleeps_answers_and_proves_integrity_once() -> None:
    harness = Harness()
    thread = threading.Thread(target=harness.loop.run)
    used = time.process_time()
    thread.start()
    deadline = time.monotonic() + 10
    while harness.engine.integrity_checks < 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.7)
    assert harness.engine.integrity_checks == 1
    assert time.process_time() - used < 0.5
    harness.inbox.put((3, GetStats(41)))
    harness.inbox.put((0, Quit()))
    thread.join(10)
    assert harness.sent == [(3, Stats(41, harness.engine.stats()))]
    assert harness.loop.pulse.busy_seconds == 0.0


def test_an_idle_loop_prepares_one_thing_after_another_and_again_after_sleep() -> None:
    engine = FakeEngine(step_seconds=0.01)
    engine.to_prepare = 3
    harness = Harness(engine)
    harness.inbox.put((1, add(1, "a", 20)))
    thread = threading.Thread(target=harness.loop.run)
    thread.start()
    try:
        wait_for(lambda: len(engine.prepared) == 3, "preparation")
        wait_for(lambda: harness.loop.pulse.busy_seconds == 0.0, "the end of it")
        time.sleep(0.3)
        assert engine.prepared == [0, 0, 0]  # never beside a request, and no more than there is
        for sleeping in (True, False):
            harness.inbox.put((0, SetSleeping(sleeping)))
        wait_for(lambda: len(engine.prepared) >= 4, "preparation anew")
    finally:
        harness.inbox.put((0, Quit()))
        thread.join()


def test_pulse_is_busy_only_within_a_step() -> None:
    harness = Harness()
    seen = []
    step = harness.engine.step

    def watched_step() -> list[SequenceDelta]:
        seen.append(harness.loop.pulse.busy_seconds)
        return step()

    harness.engine.step = watched_step  # type: ignore[method-assign]
    harness.run([(1, add(1, "a", 3))], [], [])
    assert all(seconds > 0 for seconds in seen)
    assert harness.loop.pulse.steps == 3
    assert harness.loop.pulse.busy_seconds == 0.0


def test_questions_do_not_keep_an_idle_loop_from_preparing() -> None:
    """Probes ask for stats several times a second."""
    engine = FakeEngine()
    engine.to_prepare = 5
    harness = Harness(engine)
    thread = threading.Thread(target=harness.loop.run)
    thread.start()
    deadline = time.monotonic() + 30
    while len(engine.prepared) < 5 and time.monotonic() < deadline:
        harness.inbox.put((3, GetStats(1)))
        time.sleep(0.03)
    harness.inbox.put((0, Quit()))
    thread.join()
    assert len(engine.prepared) == 5


def test_what_is_no_step_is_judged_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that stands still while all fall asleep, or capture a graph, is a hang as well."""
    harness = Harness()
    pulse, seen = harness.loop.pulse, []

    def watched(name: str, result: int) -> None:
        def call() -> int:
            seen.append((name, pulse.busy_seconds > 0 and not pulse.in_step, pulse.allowed_seconds))
            return result

        monkeypatch.setattr(harness.engine, name, call)

    def called(name: str) -> bool:
        return any(call == name for call, _, _ in seen)

    for name, result in (("prepare", 0), ("sleep", 5), ("wake", 0)):
        watched(name, result)
    allowed = pulse.allowed_seconds
    thread = threading.Thread(target=harness.loop.run)
    thread.start()
    for command, name in ((None, "prepare"), (SetSleeping(True), "sleep"), (SetSleeping(False), "wake")):
        if command is not None:
            harness.inbox.put((0, command))
        wait_for(partial(called, name), name)
    harness.inbox.put((0, Quit()))
    thread.join()
    assert set(seen) == {
        ("prepare", True, PREPARE_SECONDS),
        ("sleep", True, REST_SECONDS),
        ("wake", True, REST_SECONDS),
    }
    assert (pulse.busy_seconds, pulse.allowed_seconds, pulse.in_step) == (0.0, allowed, True)


def test_what_the_engine_raises_ends_the_loop() -> None:
    with pytest.raises(RuntimeError, match="boom"):
        Harness().run([(1, add(1, "a", prompt=(BOOM,)))])
