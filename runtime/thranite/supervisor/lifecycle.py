"""What state a server is in and what follows from it: pure decisions on messages, signals, requests and time.

It knows no process, socket or event loop. Inputs are noted as they come; `advance` looks at the whole, returns what the
children are to be told, and sets `outcome` when the server is to end. Nothing changes after that.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from thranite.errors import ExitCode, Rejected
from thranite.ipc import control
from thranite.server.admin import DrainStatus, Probe
from thranite.supervisor.config import ServeConfig
from thranite.supervisor.drain import Drain
from thranite.supervisor.stall import StallWatch
from thranite.supervisor.termination import Outcome, describe_exit

logger = logging.getLogger("thranite")

FLUSH_SECONDS = 3.0  # between cutting requests off and ending, for their last events to be written
SERVER_SILENCE_SECONDS = 30.0  # a server process that says nothing for so long fails the liveness probe
CUT_OFF = "the server is shutting down and this request did not finish in time"

ChildName = Literal["engine", "server"]
EXIT_CODES: dict[ChildName, ExitCode] = {"engine": ExitCode.ENGINE_DIED, "server": ExitCode.FAILURE}


@dataclass(frozen=True, slots=True)
class Order:
    """A message for one child."""

    child: ChildName
    message: control.ToChild


class Lifecycle:
    """Implements `thranite.server.admin.AdminTarget`."""

    def __init__(self, config: ServeConfig, clock: Callable[[], float]) -> None:
        self.outcome: Outcome | None = None
        self.started = False  # both children were ready; stays true
        self.hung: str | None = None  # why the engine must be killed
        self._config, self._clock = config, clock
        self._began = clock()
        self._stage = "start"
        self._ready: set[ChildName] = set()
        self._failure: control.StartupFailed | control.ChildFatal | None = None
        self._stall: StallWatch | None = None
        self._behind: str | None = None  # the rank for which the engine waits
        self._beat = control.ServerBeat(0, False)
        self._beat_at = self._began
        self._drain: Drain | None = None
        self._told = control.Draining(False, False)
        self._cut = False  # whether this drain has cut requests off

    @property
    def draining(self) -> bool:
        return self._drain is not None

    # --- inputs

    def take(self, child: ChildName, message: control.FromChild) -> None:
        match message:
            case control.Heartbeat(_, busy_seconds, allowed_seconds, behind):
                self._behind = behind
                if self._stall is not None:
                    self._stall.heartbeat(busy_seconds, allowed_seconds)
            case control.ServerBeat():
                self._beat, self._beat_at = message, self._clock()
            case control.EngineReady():
                self._ready.add(child)
                self._stall = StallWatch(self._config.stall_timeout, self._clock())
            case control.ServerReady():
                self._ready.add(child)
            case control.StageProgress(stage, _, _, done):
                self._stage = self._stage if done else stage
            case control.StartupFailed() | control.ChildFatal():
                self._failure = self._failure or message

    def child_ended(self, child: ChildName, returncode: int) -> None:
        """A child's end is the server's end."""
        how = describe_exit(child, returncode)
        match self._failure:
            case control.StartupFailed(stage, error, message, hint, exit_code):
                self._end(Outcome(ExitCode(exit_code), stage, f"{error}: {message}", hint))
            case control.ChildFatal(cause):
                self._end(Outcome(EXIT_CODES[child], self._doing(), f"{how}: {cause}"))
            case None:
                self._end(Outcome(EXIT_CODES[child], self._doing(), how))

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
        live = self.live_probe()
        return Probe(True, "ready") if live.ok else live

    def live_probe(self) -> Probe:
        verdict = None if self._stall is None else self._stall.verdict()
        if verdict is not None:
            return Probe(False, f"the engine hangs: {verdict}")
        if "server" in self._ready and self._clock() - self._beat_at > SERVER_SILENCE_SECONDS:
            return Probe(False, "the server process does not answer")
        return Probe(True, "alive")

    def drain_status(self) -> DrainStatus:
        if self._drain is None:
            return DrainStatus(False, open_requests=self._beat.open_requests)
        left = max(self._drain.deadline - self._clock(), 0.0)
        return DrainStatus(True, self._drained(), self._beat.open_requests, left)

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

    def advance(self, now: float) -> list[Order]:
        """What follows by now, for the children to be told."""
        if self.outcome is not None:
            return []
        if len(self._ready) == len(EXIT_CODES) and not self.started:
            self.started = True
            logger.info("ready after %.1f s", now - self._began)
        return self._judge_stall(now) or self._advance_drain(now)

    def _judge_stall(self, now: float) -> list[Order]:
        if self._stall is None:
            return []
        self._stall.advance(now)
        verdict = self._stall.verdict()
        if verdict is None:
            return []
        self.hung = f"the engine hangs: {verdict}" + (f"; {self._behind}" if self._behind else "")
        self._end(Outcome(ExitCode.ENGINE_STALLED, self._doing(), self.hung))
        return [Order("server", control.CutOff(self.hung))]

    def _advance_drain(self, now: float) -> list[Order]:
        if self._drain is not None and self._drain.expired(now):
            self._resume("no termination followed the drain")
        drain = self._drain
        orders = self._tell(control.Draining(drain is not None, drain is not None and drain.refusing(now)))
        if drain is None:
            return orders
        if drain.cutting_off(now) and not self._cut:
            self._cut = True
            logger.info("%d requests are cut off", self._beat.open_requests)
            orders.append(Order("server", control.CutOff(CUT_OFF)))
        flushed = drain.cutting_off(now - FLUSH_SECONDS)
        if drain.terminating and (self._drained() or flushed):
            self._end(Outcome(ExitCode.OK, "drain"), "drained")
        return orders

    def _tell(self, wish: control.Draining) -> list[Order]:
        if wish == self._told:
            return []
        self._told = wish
        return [Order("engine", wish), Order("server", wish)]

    def _drained(self) -> bool:
        """New requests are refused, as the server process confirmed, and none is open."""
        return self._told.refusing and self._beat.refusing and self._beat.open_requests == 0

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
