"""What state a server is in and what follows from it: pure decisions on messages, signals, requests and time.

It knows no process, socket or event loop. Inputs are noted as they come; `advance` looks at the whole, returns what the
children are to be told, and sets `outcome` when the server is to end. Nothing changes after that.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from dataclasses import dataclass

from thranite.errors import ExitCode, Rejected
from thranite.ipc import control
from thranite.server.admin import DrainStatus, Probe
from thranite.supervisor.config import ServeConfig
from thranite.supervisor.drain import Drain
from thranite.supervisor.fleet import Fleet
from thranite.supervisor.stall import StallWatch
from thranite.supervisor.termination import Outcome, describe_exit

logger = logging.getLogger("thranite")

FLUSH_SECONDS = 3.0  # between cutting requests off and ending, for their last events to be written
CUT_OFF = "the server is shutting down and this request did not finish in time"

ENGINE = "engine"  # the child's name; the others are a Fleet's


@dataclass(frozen=True, slots=True)
class Order:
    """A message for one child."""

    child: str
    message: control.ToChild


@dataclass(frozen=True, slots=True)
class Replace:
    """Start a server process in place of one that ended."""

    child: str


@dataclass(frozen=True, slots=True)
class Kill:
    """End a server process that hangs; its end is then noted as any other."""

    child: str


Action = Order | Replace | Kill


class Lifecycle:
    """Implements `thranite.server.admin.AdminTarget`."""

    def __init__(self, config: ServeConfig, clock: Callable[[], float]) -> None:
        self.outcome: Outcome | None = None
        self.started = False  # every child was ready; stays true
        self.hung: str | None = None  # why the engine must be killed
        self._config, self._clock = config, clock
        self._began = clock()
        self._stage = "start"
        self._engine_ready = False
        self._failures: dict[str, control.StartupFailed | control.ChildFatal] = {}
        self._fleet = Fleet(config.server_count(), self._began)
        self._lost: list[str] = []  # server processes to be replaced
        self._stall: StallWatch | None = None
        self._behind: str | None = None  # the rank for which the engine waits
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
        match message:
            case control.Heartbeat(_, busy_seconds, allowed_seconds, behind):
                self._behind = behind
                if self._stall is not None:
                    self._stall.heartbeat(busy_seconds, allowed_seconds)
            case control.ServerBeat():
                self._fleet.beat(child, message)
            case control.EngineReady():
                self._engine_ready = True
                self._stall = StallWatch(self._config.stall_timeout, self._clock())
            case control.ServerReady():
                self._fleet.ready(child)
            case control.StageProgress(stage, _, _, done):
                self._stage = self._stage if done else stage
            case control.StartupFailed() | control.ChildFatal():
                self._failures.setdefault(child, message)

    def child_ended(self, child: str, returncode: int) -> None:
        """The engine's end is the server's end; a server process is replaced, unless that has not helped before."""
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
        if self._drain is not None:
            return Probe(False, "draining")
        if not self._fleet.any_ready:
            return Probe(False, "the server process is being started again")
        live = self.live_probe()
        return Probe(True, "ready") if live.ok else live

    def live_probe(self) -> Probe:
        verdict = None if self._stall is None else self._stall.verdict()
        if verdict is not None:
            return Probe(False, f"the engine hangs: {verdict}")
        return Probe(True, "alive")

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
        if self._engine_ready and self._fleet.all_ready and not self.started:
            self.started = True
            logger.info("ready after %.1f s", now - self._began)
        stalled = self._judge_stall(now)
        return list(stalled) if stalled else [*self._mend_fleet(now), *self._advance_drain(now)]

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
        if self._stall is None:
            return []
        self._stall.advance(now)
        verdict = self._stall.verdict()
        if verdict is None:
            return []
        self.hung = f"the engine hangs: {verdict}" + (f"; {self._behind}" if self._behind else "")
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
        return [Order(ENGINE, wish), *self._to_servers(wish)]

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
