"""Models beside the first as pure decisions, on a clock of the test."""

from __future__ import annotations

import signal

import pytest

from tests.support.fake_stepping_engine import INFO
from thranite.config import EngineConfig
from thranite.errors import Rejected
from thranite.ipc import control
from thranite.ipc.control import ModelPhase
from thranite.server.errors import ModelUnknown
from thranite.server.model_options import ModelDefaults
from thranite.supervisor.actions import Action, End, Forget, Kill, Launch, Order
from thranite.supervisor.added_models import (
    LONGEST_RETRY_SECONDS,
    STABLE_SECONDS,
    UNLOADED,
    AddedModels,
)
from thranite.supervisor.drain import FLUSH_SECONDS
from thranite.supervisor.fleet import Fleet

DEFAULTS = ModelDefaults(EngineConfig(model="first"))
A, B = "a engine", "b engine"


class Life:
    """Models over two server processes that are ready."""

    def __init__(self, *names: str) -> None:
        self.now = 100.0
        self.fleet = Fleet(2, self.now)
        for name in self.fleet.names:
            self.fleet.ready(name)
        self.models = AddedModels(self.fleet, None, lambda: self.now)
        for name in names:
            self.models.load(DEFAULTS.define(name, f"models/{name}", {}))

    def advance(self, seconds: float = 0.1, may_load: bool = True) -> list[Action]:
        """Let time pass in one leap; what follows but orders."""
        self.now += seconds
        self.orders: list[Order] = []
        actions = self.models.advance(self.now, may_load)
        self.orders = [action for action in actions if isinstance(action, Order)]
        return [action for action in actions if not isinstance(action, Order)]

    def up(self, name: str) -> None:
        """Its engine is ready, and both server processes answer for it."""
        self.models.take(f"{name} engine", control.EngineReady(INFO))
        for server in self.fleet.names:
            self.models.told(server, control.ModelServed(name))
        self.advance()

    def phases(self) -> list[ModelPhase]:
        return [state.phase for state in self.models.states()]


def launched(actions: list[Action]) -> list[str]:
    return [action.child for action in actions if isinstance(action, Launch)]


def test_models_load_one_after_another_once_the_first_is_up() -> None:
    life = Life("a", "b")
    assert life.advance(may_load=False) == []
    assert launched(life.advance()) == [A]
    assert launched(life.advance(60)) == []
    assert life.phases() == [ModelPhase.LOADING, ModelPhase.QUEUED]
    life.models.take(A, control.EngineReady(INFO))
    assert launched(life.advance()) == [B]
    life.models.told("server-1", control.ModelServed("a"))
    life.advance()
    assert life.phases()[0] is ModelPhase.LOADING  # the other server process does not answer for it yet
    life.models.told("server-2", control.ModelServed("a"))
    life.advance()
    assert life.phases() == [ModelPhase.READY, ModelPhase.LOADING]
    assert life.models.engines == [A, B]


def test_waits_double_up_to_a_limit_and_are_forgotten_after_stable_service() -> None:
    life = Life("a")
    life.advance()
    for failures in range(12):
        life.models.take(A, control.StartupFailed("plan", "DoesNotFit", "no room", "take less", 7))
        life.models.engine_ended(A, 7)
        state = life.models.state("a")
        assert (state.phase, state.cause) == (ModelPhase.FAILED, "plan: DoesNotFit: no room (hint: take less)")
        assert state.retry_seconds == min(2.0**failures, LONGEST_RETRY_SECONDS)
        life.advance(state.retry_seconds - 0.2)
        assert life.phases()[0] is ModelPhase.FAILED
        life.advance(0.3)
        assert launched(life.advance()) == [A]
    life.up("a")
    life.models.take(A, control.Heartbeat(1, 0.0, 10.0))
    life.advance(STABLE_SECONDS)
    life.models.engine_ended(A, -signal.SIGKILL)
    assert life.models.state("a").retry_seconds == 1.0
    assert "SIGKILL" in (life.models.state("a").cause or "")


def test_one_that_always_fails_is_tried_for_ever() -> None:
    """Four days long, a failure every 300 s: more often than a float can be doubled."""
    life = Life("a")
    for _ in range(1100):
        assert launched(life.advance(LONGEST_RETRY_SECONDS) + life.advance()) == [A]
        life.models.engine_ended(A, 7)
        assert (life.models.state("a").retry_seconds or 0) <= LONGEST_RETRY_SECONDS


def test_a_process_that_the_system_refuses_is_a_failure_like_others() -> None:
    life = Life("a", "b")
    assert launched(life.advance()) == [A]
    life.models.engine_not_started(A, "no more processes")
    assert life.models.state("a").cause == "no more processes"
    assert launched(life.advance()) == [B]
    life.models.take(B, control.EngineReady(INFO))
    life.advance(1.0)
    assert launched(life.advance()) == [A]


def test_a_hang_is_told_and_ended() -> None:
    life = Life("a")
    life.advance()
    life.up("a")
    life.models.take(A, control.Heartbeat(5, 30.0, 12.0))
    assert life.advance() == [End(A, hung=True)]
    cause = life.models.state("a").cause or ""
    assert "the engine hangs" in cause
    assert life.orders == [Order(name, control.CutOff(cause, "a")) for name in life.fleet.names]
    assert launched(life.advance(60)) == []  # its memory is not given back yet
    assert life.models.state("a").phase is ModelPhase.QUEUED
    life.models.engine_ended(A, -signal.SIGABRT)
    assert launched(life.advance()) == [A]


def test_one_server_process_that_cannot_read_the_texts_is_enough() -> None:
    life = Life("a", "b")
    life.advance()
    life.models.told("server-2", control.ModelRefused("a", "no tokenizer"))
    assert life.advance() == [Kill(A)]  # it loads, and would not listen
    assert life.models.state("a").cause == "no tokenizer"


def test_unloading_waits_for_requests_then_ends_the_engine() -> None:
    life = Life("a", "b")
    life.advance()
    life.up("a")
    life.models.unload("a", 10.0, [])
    assert life.advance() == []
    assert life.orders == [Order(name, control.RemoveModel("a")) for name in life.fleet.names]
    life.models.told("server-1", control.ModelGone("a"))
    assert life.advance(5) == []
    life.models.server_ended("server-2")  # the one in its place knows nothing of the model
    assert life.advance() == [End(A)]
    assert life.advance() == []
    life.models.engine_ended(A, 0)
    assert life.advance() == [Forget(A, "a")]
    assert [state.name for state in life.models.states()] == ["b"]
    with pytest.raises(ModelUnknown, match="this server has `b`"):
        life.models.unload("a", 1.0, ["b"])


def test_unloading_waits_for_servers_that_took_the_place_of_others() -> None:
    life = Life("a")
    life.advance()
    life.up("a")
    for server in life.fleet.names:
        life.models.server_ended(server)
        life.models.told(server, control.ModelServed("a"))
    life.models.unload("a", 60.0, [])
    assert life.advance() == []
    assert life.orders == [Order(name, control.RemoveModel("a")) for name in life.fleet.names]
    for server in life.fleet.names:
        assert life.advance() == []
        life.models.told(server, control.ModelGone("a"))
    assert life.advance() == [End(A)]


def test_unloading_does_not_wait_for_ever() -> None:
    life = Life("a", "b")
    life.advance()
    life.up("a")
    life.models.unload("a", 10.0, [])
    life.models.unload("a", 5.0, [])  # the earlier deadline counts
    life.advance(4.8)
    assert Order("server-1", control.CutOff(UNLOADED, "a")) not in life.orders
    life.advance(0.3)
    assert Order("server-1", control.CutOff(UNLOADED, "a")) in life.orders
    assert life.advance(FLUSH_SECONDS) == [End(A)]
    with pytest.raises(Rejected, match="which is unloading"):
        life.models.load(DEFAULTS.define("a", "models/a", {}))


def test_a_loading_model_is_unloaded_at_once_and_makes_room_for_the_next() -> None:
    life = Life("a", "b")
    life.advance()
    life.models.unload("a", 600.0, [])
    assert life.advance() == [Kill(A)]
    for server in life.fleet.names:
        life.models.told(server, control.ModelGone("a"))
    life.models.engine_ended(A, -signal.SIGKILL)
    assert launched(life.advance()) == [B]
    assert [state.name for state in life.models.states()] == ["b"]
