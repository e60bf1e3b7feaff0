"""What state a server is in and what follows from it: pure decisions on messages, signals, requests and time.

It knows no process, socket or event loop. Inputs are noted as they come; `advance` looks at the whole, returns what the
children are to be told, and sets `outcome` when the server is to end. Nothing changes after that.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Sequence

from thranite.errors import ExitCode, Rejected
from thranite.ipc import control
from thranite.ipc.control import ModelPhase, ModelState
from thranite.server.admin import DrainStatus, Probe
from thranite.supervisor.actions import Action, Kill, Launch, Order, Replace
from thranite.supervisor.added_models import AddedModels
from thranite.supervisor.config import ServeConfig
from thranite.supervisor.drain import FLUSH_SECONDS, Drain
from thranite.supervisor.engine_life import EngineLife
from thranite.supervisor.fleet import Fleet
from thranite.supervisor.sleep import CUT_OFF as SLEEP_CUT_OFF
from thranite.supervisor.sleep import Sleeper, SleepStatus
from thranite.supervisor.termination import Outcome, describe_exit

logger = logging.getLogger("thranite")

CUT_OFF = "the server is draining and this request did not finish in time"

ENGINE = "engine"  # the first model's; the other children are the Fleet's and the AddedModels'


class Lifecycle:
    """Implements `thranite.server.admin.AdminTarget`. `names`: the first model's, in the API; `root`: where it is."""

    def __init__(
        self, config: ServeConfig, clock: Callable[[], float], names: Sequence[str] = ("model",), root: str = ""
    ) -> None:
        self.outcome: Outcome | None = None
        self.started = False  # every child was ready; stays true
        self.hung: str | None = None  # why the engine must be killed
        self._config, self._clock = config, clock
        self._began = clock()
        self._stage = "start"
        self._names, self._root = tuple(names), root
        self._engine = EngineLife(config.stall_timeout)
        self._failures: dict[str, control.StartupFailed | control.ChildFatal] = {}
        self._fleet = Fleet(config.server_count(), self._began)
        self._lost: list[str] = []  # server processes to be replaced
        self.added = AddedModels(self._fleet, config.stall_timeout, clock)
        self._told_states = self.model_states()
        self._drain: Drain | None = None
        self._told = control.Draining(False, False)
        self._cut = False  # whether this drain has cut requests off

    @property
    def draining(self) -> bool:
        return self._drain is not None

    @property
    def servers(self) -> tuple[str, ...]:
        """The server processes' names."""
        return self._fleet.names

    # --- inputs

    def take(self, child: str, message: control.FromChild) -> None:
        if self.added.owns(child):
            self.added.take(child, message)
            return
        if child == ENGINE:
            self._engine.take(message, self._clock())
        match message:
            case control.ServerBeat():
                self._fleet.beat(child, message)
            case control.ModelServed() | control.ModelRefused() | control.ModelGone():
                self.added.told(child, message)
            case control.ServerReady():
                self._fleet.ready(child)
            case control.StageProgress(stage, _, _, done):
                self._stage = self._stage if done else stage
            case control.StartupFailed() | control.ChildFatal():
                self._failures.setdefault(child, message)

    def child_ended(self, child: str, returncode: int) -> None:
        """The first model's engine's end is the server's end, that of another is its model's alone; a server process is
        replaced, unless that has not helped before."""
        if self.added.owns(child):
            if self.outcome is None:
                self.added.engine_ended(child, returncode)
            return
        if child != ENGINE:
            self.added.server_ended(child)
        how, failure = describe_exit(child, returncode), self._failures.pop(child, None)
        if self.outcome is None and child != ENGINE and self._fleet.ended(child, self._clock()) and self.started:
            logger.error("%s; its open requests are lost, and it is started again", how)
            self._lost.append(child)
            return
        code = ExitCode.ENGINE_DIED if child == ENGINE else ExitCode.FAILURE
        match failure:
            case control.StartupFailed(stage, error, message, hint, exit_code):
                self._end(Outcome(ExitCode(exit_code), stage, f"{error}: {message}", hint))
            case control.ChildFatal(cause):
                self._end(Outcome(code, self._doing(), f"{how}: {cause}"))
            case None:
                self._end(Outcome(code, self._doing(), how))

    def on_signal(self, number: int) -> None:
        """SIGTERM or SIGINT: drain, then end. The second one ends at once."""
        name, now = signal.Signals(number).name, self._clock()
        if not self.started:
            self._end(Outcome(ExitCode.OK, self._stage), f"{name} before the server was up")
        elif self._drain is not None and self._drain.terminating:
            logger.info("%s again: ending now", name)
            self._drain = self._drain.hurry(now)
        else:
            drain = self._drain or self._new_drain(now, float("inf"))
            self._drain = drain.terminate(now, self._config.drain_timeout)
            logger.info("%s: draining for at most %.0f s; again to end now", name, self._drain.deadline - now)

    # --- AdminTarget

    def startup_probe(self) -> Probe:
        return Probe(self.started, "started" if self.started else f"loading: {self._stage}")

    def ready_probe(self) -> Probe:
        if self.outcome is not None:
            return Probe(False, "ending")
        if not self.started:
            return self.startup_probe()
        if self._drain is not None or self._told.draining:  # an end of it that is still to be told is none
            return Probe(False, "draining")
        if not self._fleet.any_ready:
            return Probe(False, "the server process is being started again")
        if self._engine.phase is not ModelPhase.READY:
            return Probe(False, f"the model is {self._engine.phase}")
        live = self.live_probe()
        return Probe(True, "ready") if live.ok else live

    def live_probe(self) -> Probe:
        hang = self._engine.hang()
        return Probe(True, "alive") if hang is None else Probe(False, hang)

    def model_states(self) -> tuple[ModelState, ...]:
        """How every model fares, the first one first."""
        return (ModelState(self._names[0], self._engine.phase, self._root), *self.added.states())

    def sleeper(self, name: str | None) -> Sleeper:
        """Of a model whose engine is up; None: of the first. Raises Rejected or ModelUnknown."""
        if name is not None and name not in self._names:
            return self.added.sleeper(name, [state.name for state in self.model_states()])
        if not self.started:
            raise Rejected("the server is not up: there is nothing to put to sleep", "loading")
        return self._engine.sleeper

    def start_sleep(self, name: str | None, seconds: float | None) -> SleepStatus:
        """None: open requests get the drain timeout. Raises Rejected or ModelUnknown."""
        if self._drain is not None:
            raise Rejected("the server is draining: no model is put to sleep", "draining")
        sleeper = self.sleeper(name)
        sleeper.sleep(self._clock(), self._config.drain_timeout if seconds is None else seconds)
        return sleeper.status

    def start_wake(self, name: str | None) -> SleepStatus:
        sleeper = self.sleeper(name)
        sleeper.wake()
        return sleeper.status

    def sleep_status(self, name: str | None) -> SleepStatus:
        return self.sleeper(name).status

    def load_model(self, definition: control.AddModel) -> ModelState:
        """Begin to load a model beside the first. Raises Rejected."""
        if self._drain is not None:
            raise Rejected("the server is draining: it loads no models", "draining")
        if definition.name in self._names:
            raise Rejected(f"{definition.name!r} is the first model", "exists")
        self.added.load(definition)
        return self.added.state(definition.name)

    def unload_model(self, name: str, seconds: float | None) -> ModelState:
        """Begin to unload it. None: open requests get the drain timeout. Raises Rejected or ModelUnknown."""
        if name in self._names:
            raise Rejected(f"{name!r} is the first model: it ends with the server", "first_model")
        known = [state.name for state in self.model_states()]
        self.added.unload(name, self._config.drain_timeout if seconds is None else seconds, known)
        return self.added.state(name)

    def drain_status(self) -> DrainStatus:
        if self._drain is None:
            return DrainStatus(False, open_requests=self._fleet.open_requests)
        left = max(self._drain.deadline - self._clock(), 0.0)
        return DrainStatus(True, self._drained(), self._fleet.open_requests, left)

    def start_drain(self, deadline_seconds: float | None) -> DrainStatus:
        if not self.started:
            raise Rejected("the server is not up: there is nothing to drain", "loading")
        if self._drain is None:
            seconds = self._config.drain_timeout if deadline_seconds is None else deadline_seconds
            self._drain = self._new_drain(self._clock(), seconds)
            logger.info("draining, as the admin port was asked, for at most %.0f s", seconds)
        elif deadline_seconds is not None and not self._drain.terminating:
            self._drain = self._drain.with_deadline(deadline_seconds)
        return self.drain_status()

    def stop_drain(self) -> DrainStatus:
        if self._drain is not None and self._drain.terminating:
            raise Rejected("the server is terminating: its drain cannot be undone", "draining")
        self._resume("as the admin port was asked")
        return self.drain_status()

    # --- decisions

    def advance(self, now: float) -> list[Action]:
        """What follows by now, for the children to be told or replaced."""
        if self.outcome is not None:
            return []
        if self._engine.ready and self._fleet.all_ready and not self.started:
            self.started = True
            logger.info("ready after %.1f s", now - self._began)
        stalled = self._judge_stall(now)
        if stalled:
            return list(stalled)
        return [*self._mend_fleet(now), *self._advance_added(now), *self._advance_drain(now)]

    def _advance_added(self, now: float) -> list[Action]:
        """An engine that starts during a drain hears of it; every server process hears how the models fare."""
        terminating = self._drain is not None and self._drain.terminating
        actions: list[Action] = []
        for action in self.added.advance(now, may_load=self.started and not terminating):
            actions.append(action)
            if isinstance(action, Launch) and self._told.draining:
                actions.append(Order(action.child, self._told))
        orders, cut = self._engine.sleeper.advance(now)
        actions += [Order(ENGINE, order) for order in orders]
        if cut:
            actions += self._to_servers(control.CutOff(SLEEP_CUT_OFF, self._names[0]))
        states = self.model_states()
        if states != self._told_states:
            self._told_states = states
            actions += self._to_servers(control.ModelStates(states))
        return actions

    def _mend_fleet(self, now: float) -> list[Action]:
        """Kill what hangs, replace what ended; a new process hears at once of a drain that goes on."""
        actions: list[Action] = []
        for name in self._fleet.advance(now):
            logger.error("the %s process does not answer: it is killed", name)
            actions.append(Kill(name))
        for name in self._lost:
            actions.append(Replace(name))
            if self._told.draining:
                actions.append(Order(name, self._told))
        self._lost.clear()
        return actions

    def _judge_stall(self, now: float) -> list[Order]:
        self._engine.advance(now)
        self.hung = self._engine.hang()
        if self.hung is None:
            return []
        self._end(Outcome(ExitCode.ENGINE_STALLED, self._doing(), self.hung))
        return self._to_servers(control.CutOff(self.hung))

    def _advance_drain(self, now: float) -> list[Order]:
        if self._drain is not None and self._drain.expired(now):
            self._resume("no termination followed the drain")
        drain = self._drain
        orders = self._tell(control.Draining(drain is not None, drain is not None and drain.refusing(now)))
        if drain is None:
            return orders
        if drain.cutting_off(now) and not self._cut:
            self._cut = True
            logger.info("%d requests are cut off", self._fleet.open_requests)
            orders += self._to_servers(control.CutOff(CUT_OFF))
        flushed = drain.cutting_off(now - FLUSH_SECONDS)
        if drain.terminating and (self._drained() or flushed):
            self._end(Outcome(ExitCode.OK, "drain"), "drained")
        return orders

    def _tell(self, wish: control.Draining) -> list[Order]:
        if wish == self._told:
            return []
        self._told = wish
        return [Order(name, wish) for name in (ENGINE, *self.added.engines, *self._fleet.names)]

    def _to_servers(self, message: control.ToChild) -> list[Order]:
        return [Order(name, message) for name in self._fleet.names]

    def _drained(self) -> bool:
        """New requests are refused, as every server process confirmed, and none is open."""
        return self._told.refusing and self._fleet.all_refusing and self._fleet.open_requests == 0

    def _new_drain(self, now: float, seconds: float) -> Drain:
        self._cut = False
        return Drain(now, self._config.drain_delay, now + seconds)

    def _resume(self, why: str) -> None:
        if self._drain is not None:
            logger.info("serving again, %s", why)
        self._drain = None

    def _doing(self) -> str:
        if not self.started:
            return self._stage
        return "serve" if self._drain is None else "drain"

    def _end(self, outcome: Outcome, why: str | None = None) -> None:
        if self.outcome is None:
            self.outcome = outcome
            logger.info("ending: %s", why or outcome.cause)
