"""The server's life as pure decisions, on a clock of the test."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from tests.support.fake_stepping_engine import INFO
from thranite.errors import ExitCode, Rejected
from thranite.ipc import control
from thranite.supervisor.actions import Action, Kill, Order, Replace
from thranite.supervisor.config import ServeConfig
from thranite.supervisor.drain import FLUSH_SECONDS
from thranite.supervisor.fleet import DEATH_WINDOW_SECONDS, MAX_DEATHS
from thranite.supervisor.lifecycle import Lifecycle

DRAIN, REFUSE, SERVE = control.Draining(True, False), control.Draining(True, True), control.Draining(False, False)


class Life:
    """A Lifecycle, its clock, and children that obey. `refusing`: what the server process was told last."""

    def __init__(self, *, ready: bool = True, **config: Any) -> None:
        self.now = 1000.0
        options = {"drain_delay": 5.0, "drain_timeout": 25.0, "server_processes": 1, **config}
        self.lifecycle = Lifecycle(ServeConfig(**options), lambda: self.now, root="models/first")
        self.refusing = False
        self.actions: list[Action] = []  # but orders
        if ready:
            self.lifecycle.take("engine", control.EngineReady(INFO))
            for name in self.lifecycle.servers:
                self.lifecycle.take(name, control.ServerReady())
            self.wait(0.1)

    def wait(self, seconds: float, open_requests: int = 0, beats: bool = True) -> list[control.ToChild]:
        """Let time pass in ticks of 0.1 s with living children; returns what the first server process was told."""
        told: list[control.ToChild] = []
        for _ in range(max(round(seconds / 0.1), 1)):
            self.now += 0.1
            if beats:
                self.lifecycle.take("engine", control.Heartbeat(1, 0.0, 10.0))
                for name in self.lifecycle.servers:
                    self.lifecycle.take(name, control.ServerBeat(open_requests, self.refusing))
            actions = self.lifecycle.advance(self.now)
            self.actions += [action for action in actions if not isinstance(action, Order)]
            first = self.lifecycle.servers[0]
            orders = [a.message for a in actions if isinstance(a, Order) and a.child == first]
            for order in orders:
                if isinstance(order, control.Draining):
                    self.refusing = order.refusing
            told += orders
        return told

    def probes(self) -> list[bool]:
        life = self.lifecycle
        return [probe.ok for probe in (life.startup_probe(), life.ready_probe(), life.live_probe())]


def test_the_first_model_s_root_is_told() -> None:
    assert [state.root for state in Life().lifecycle.model_states()] == ["models/first"]


def test_probes_while_loading_serving_draining_and_ending() -> None:
    life = Life(ready=False)
    life.lifecycle.take("engine", control.StageProgress("load weights", 0.5, 1.0))
    assert life.probes() == [False, False, True]
    assert life.lifecycle.ready_probe().reason == "loading: load weights"
    life.lifecycle.take("engine", control.EngineReady(INFO))
    life.wait(0.1)
    assert life.probes() == [False, False, True]
    life.lifecycle.take("server", control.ServerReady())
    life.wait(0.1)
    assert life.probes() == [True, True, True]
    life.lifecycle.start_drain(None)
    assert life.probes() == [True, False, True]
    life.lifecycle.child_ended("server", 1)
    assert life.probes() == [True, False, True]


def test_loading_is_exempt_from_the_stall_rule() -> None:
    life = Life(ready=False)
    life.wait(3600, beats=False)
    assert life.probes() == [False, False, True]
    assert life.lifecycle.outcome is None


def test_sigterm_admits_then_refuses_then_waits_then_ends() -> None:
    life = Life()
    life.lifecycle.on_signal(signal.SIGTERM)
    assert life.wait(4.8, open_requests=2) == [DRAIN]
    assert life.wait(1.0, open_requests=2) == [REFUSE]
    assert life.wait(10, open_requests=1) == []
    assert life.lifecycle.outcome is None
    life.wait(0.2)
    outcome = life.lifecycle.outcome
    assert outcome is not None
    assert (outcome.exit_code, outcome.cause) == (ExitCode.OK, None)


def test_sigterm_cuts_off_at_the_deadline_and_ends_even_if_the_server_does_not_follow() -> None:
    life = Life()
    life.lifecycle.on_signal(signal.SIGTERM)
    told = life.wait(25.2, open_requests=3)
    assert isinstance(told[-1], control.CutOff)
    assert life.lifecycle.outcome is None
    life.wait(FLUSH_SECONDS + 0.2, open_requests=3)
    assert life.lifecycle.outcome is not None


def test_the_second_signal_ends_at_once() -> None:
    life = Life()
    life.lifecycle.on_signal(signal.SIGINT)
    life.wait(0.5, open_requests=1)
    life.lifecycle.on_signal(signal.SIGTERM)
    told = life.wait(0.2, open_requests=1)
    assert told[0] == REFUSE
    assert isinstance(told[1], control.CutOff)
    life.wait(0.2, open_requests=0)
    assert life.lifecycle.outcome is not None


def test_a_signal_while_loading_ends_at_once() -> None:
    life = Life(ready=False)
    life.lifecycle.on_signal(signal.SIGTERM)
    assert life.lifecycle.outcome is not None
    assert life.lifecycle.outcome.exit_code == ExitCode.OK
    assert life.lifecycle.outcome.cause is None


def test_a_drain_that_no_termination_follows_ends_itself() -> None:
    life = Life()
    assert life.lifecycle.start_drain(10.0).deadline_seconds == 10.0
    life.wait(8)
    assert life.lifecycle.drain_status().drained
    assert life.wait(61) == [control.CutOff("the server is draining and this request did not finish in time")]
    assert life.wait(2) == [SERVE]
    assert life.probes() == [True, True, True]
    life.lifecycle.start_drain(None)
    assert life.wait(6) == [DRAIN, REFUSE]


def test_drains_are_idempotent_and_can_be_undone_until_a_termination() -> None:
    life = Life()
    life.lifecycle.start_drain(30.0)
    life.wait(4)
    assert life.lifecycle.start_drain(30.0).deadline_seconds == pytest.approx(26)
    assert life.lifecycle.start_drain(None).deadline_seconds == pytest.approx(26)
    assert life.lifecycle.stop_drain().draining is False
    assert life.probes() == [True, False, True], "the server processes do not know yet"
    assert life.wait(0.1) == [SERVE]
    assert life.probes() == [True, True, True]
    assert life.lifecycle.stop_drain().draining is False
    life.lifecycle.start_drain(600.0)
    life.wait(6)
    life.lifecycle.on_signal(signal.SIGTERM)
    status = life.lifecycle.start_drain(600.0)
    assert status.deadline_seconds == pytest.approx(25.0)
    with pytest.raises(Rejected):
        life.lifecycle.stop_drain()
    life.wait(0.2)
    assert life.lifecycle.outcome is not None


def test_a_drain_needs_a_server_that_is_up() -> None:
    with pytest.raises(Rejected):
        Life(ready=False).lifecycle.start_drain(None)


def test_a_beat_from_before_the_refusal_does_not_count_as_drained() -> None:
    life = Life(drain_delay=0.0)
    life.lifecycle.on_signal(signal.SIGTERM)
    life.lifecycle.take("server", control.ServerBeat(0, False))
    life.lifecycle.advance(life.now)
    life.lifecycle.advance(life.now)
    assert life.lifecycle.outcome is None
    life.lifecycle.take("server", control.ServerBeat(0, True))
    life.lifecycle.advance(life.now)
    assert life.lifecycle.outcome is not None


@pytest.mark.parametrize(
    ("message", "code", "cause"),
    [
        (None, ExitCode.ENGINE_DIED, "the engine process was killed by SIGSEGV"),
        (control.ChildFatal("E: boom"), ExitCode.ENGINE_DIED, "the engine process was killed by SIGSEGV: E: boom"),
        (control.StartupFailed("plan", "DoesNotFit", "no", "hint", 7), ExitCode.DOES_NOT_FIT, "DoesNotFit: no"),
    ],
)
def test_the_end_of_the_engine(message: control.FromChild | None, code: ExitCode, cause: str) -> None:
    life = Life()
    if message is not None:
        life.lifecycle.take("engine", message)
    life.lifecycle.child_ended("engine", -signal.SIGSEGV)
    life.lifecycle.child_ended("server", 0)  # what follows changes nothing
    outcome = life.lifecycle.outcome
    assert outcome is not None
    assert (outcome.exit_code, outcome.cause) == (code, cause)


def test_a_stall_is_a_verdict_and_tells_clients() -> None:
    life = Life()
    life.lifecycle.take("engine", control.Heartbeat(5, 30.0, 12.0))
    assert not life.lifecycle.live_probe().ok
    orders = life.lifecycle.advance(life.now)
    assert orders == [Order("server", control.CutOff(str(life.lifecycle.hung)))]
    assert life.lifecycle.outcome is not None
    assert life.lifecycle.outcome.exit_code == ExitCode.ENGINE_STALLED


def test_a_silent_server_process_is_killed() -> None:
    life = Life()
    for _ in range(320):
        life.now += 0.1
        life.lifecycle.take("engine", control.Heartbeat(1, 0.0, 10.0))
        life.actions += life.lifecycle.advance(life.now)
    assert life.actions == [Kill("server")]
    assert life.probes() == [True, True, True]


def test_a_frozen_supervisor_does_not_blame_its_children() -> None:
    life = Life()
    life.now += 3600
    life.wait(0.1)
    assert life.actions == []


def test_a_dead_server_process_is_replaced_and_hears_of_the_drain() -> None:
    life = Life(server_processes=2)
    assert life.lifecycle.servers == ("server-1", "server-2")
    life.lifecycle.child_ended("server-2", -signal.SIGKILL)
    assert life.lifecycle.advance(life.now) == [Replace("server-2")]
    assert life.probes() == [True, True, True]
    life.lifecycle.child_ended("server-1", -signal.SIGKILL)
    assert life.probes() == [True, False, True]
    life.wait(0.1)
    for name in life.lifecycle.servers:
        life.lifecycle.take(name, control.ServerReady())
    life.lifecycle.on_signal(signal.SIGTERM)
    assert life.wait(5.2, open_requests=1) == [DRAIN, REFUSE]
    life.lifecycle.child_ended("server-1", -signal.SIGKILL)
    assert life.lifecycle.advance(life.now) == [Replace("server-1"), Order("server-1", REFUSE)]
    life.lifecycle.take("server-2", control.ServerBeat(0, True))
    life.lifecycle.advance(life.now)
    assert life.lifecycle.outcome is None  # the new one has not confirmed that it refuses
    life.lifecycle.take("server-1", control.ServerBeat(0, True))
    life.lifecycle.advance(life.now)
    assert life.lifecycle.outcome is not None
    assert life.lifecycle.outcome.exit_code == ExitCode.OK


def test_a_server_process_that_keeps_dying_ends_the_server_with_its_cause() -> None:
    life = Life()
    for _ in range(MAX_DEATHS):
        life.lifecycle.child_ended("server", 1)
        life.wait(1)
    assert life.lifecycle.outcome is None
    life.lifecycle.take("server", control.ChildFatal("OSError: no more files"))
    life.lifecycle.child_ended("server", 1)
    outcome = life.lifecycle.outcome
    assert outcome is not None
    assert outcome.exit_code == ExitCode.FAILURE
    assert outcome.cause == "the server process exited with code 1: OSError: no more files"


def test_a_death_now_and_then_is_no_cause() -> None:
    life = Life()
    for _ in range(3 * MAX_DEATHS):
        life.lifecycle.child_ended("server", 1)
        life.lifecycle.take("server", control.ServerReady())
        life.wait(DEATH_WINDOW_SECONDS / MAX_DEATHS + 1)
    assert life.lifecycle.outcome is None


def test_a_server_process_that_dies_before_the_server_is_up_ends_it() -> None:
    life = Life(ready=False)
    life.lifecycle.child_ended("server", 1)
    assert life.lifecycle.outcome is not None
