"""The step loop of an engine process: apply what servers asked, step, send what the step brought.

Runs on the main thread. The socket thread puts commands into `inbox`; they take effect between two steps.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Protocol

from thranite.engine.routes import Routes
from thranite.engine.stats import EngineStats
from thranite.engine.step_time import FIRST_STEP_SECONDS, PREPARE_SECONDS, REST_SECONDS, StepLoad, StepTimeFit
from thranite.errors import InvalidRequest, Rejected
from thranite.ipc import messages
from thranite.ipc.control import Slept
from thranite.ipc.outbound import ToServer
from thranite.ipc.rest import Rest
from thranite.request import EngineRequest, SequenceDelta

logger = logging.getLogger(__name__)

IDLE_SECONDS = 0.5  # idle for this long, the engine proves its integrity once
QUIET_SECONDS = 0.1  # idle for this long, it prepares one thing more; a request that comes then waits for it
SAMPLE_SECONDS = 0.25  # the fit takes one step in so many seconds, and every slow one
SLOW_STEP_SECONDS = 0.05


class SteppingEngine(Protocol):
    """What the loop needs of `thranite.engine.engine.Engine`."""

    def add(self, request: EngineRequest, arrival: float | None = None) -> None: ...
    def abort(self, request_id: str) -> None: ...
    def stop(self, request_id: str, index: int) -> None: ...
    def set_draining(self, draining: bool) -> None: ...
    def step(self) -> list[SequenceDelta]: ...
    @property
    def has_work(self) -> bool: ...
    @property
    def plan_at(self) -> float: ...
    def load(self, most: int) -> StepLoad: ...
    def stats(self) -> EngineStats: ...
    def check_integrity(self) -> None: ...
    def prepare(self) -> bool: ...
    def set_sleepy(self, sleepy: bool) -> None: ...
    def sleep(self) -> int: ...
    def wake(self) -> int: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Closed:
    """A server process's connection ended: its requests have nobody left to read them."""


@dataclass(frozen=True, slots=True)
class SetDraining:
    """From the supervisor: refuse new requests, or take them again."""

    draining: bool


@dataclass(frozen=True, slots=True)
class SetSleeping:
    """From the supervisor: refuse new requests, and sleep once none is open; or wake."""

    sleeping: bool


@dataclass(frozen=True, slots=True)
class Quit:
    """Leave the loop."""


Command = messages.ToEngine | Closed | SetDraining | SetSleeping | Quit


class Pulse:
    """The loop's state for the socket thread's heartbeats: written here, read there, each field by itself."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.steps = 0
        self.allowed_seconds = FIRST_STEP_SECONDS
        self.in_step = True
        self._busy_since: float | None = None

    def begin(self, allowed_seconds: float) -> None:
        self.allowed_seconds = allowed_seconds
        self._busy_since = self._clock()

    def end(self) -> None:
        self.steps += 1
        self._busy_since = None

    @contextmanager
    def within(self, allowed_seconds: float) -> Iterator[None]:
        """Busy with what is no step of requests."""
        before = self.allowed_seconds
        self.in_step = False
        self.begin(allowed_seconds)
        yield
        self.end()
        self.allowed_seconds, self.in_step = before, True

    @property
    def busy_seconds(self) -> float:
        since = self._busy_since
        return 0.0 if since is None else max(self._clock() - since, 1e-6)


class EngineLoop:
    """`post(connection, message)` sends; it must not block. `tell`: of falling asleep and of waking."""

    def __init__(
        self,
        engine: SteppingEngine,
        inbox: SimpleQueue[tuple[int, Command]],
        post: Callable[[int, ToServer], None],
        *,
        max_step_tokens: int,
        clock: Callable[[], float] = time.monotonic,
        tell: Callable[[Slept], None] = lambda _: None,
    ) -> None:
        self.pulse = Pulse(clock)
        self._engine, self._inbox, self._post = engine, inbox, post
        self._max_step_tokens = max_step_tokens
        self._clock = clock
        self._rest = Rest(engine, tell, clock)
        self._routes = Routes()
        self._fit = StepTimeFit()
        self._sampled_at = -SAMPLE_SECONDS
        self._last_seconds = 0.0
        self._added = False
        self._idle_since = clock()  # commands that bring no work do not count
        self._unproven = True  # whether there was work since the last integrity check
        self._prepared = False  # whether nothing is left that would make later steps faster

    def run(self) -> None:
        """Until a Quit command. Whatever the engine raises, except for a request's refusal, ends it."""
        while self._apply_commands():
            if self._engine.has_work:
                self._step()
            if self._rest.due:
                with self.pulse.within(REST_SECONDS):
                    self._rest.advance()

    # --- commands

    def _apply_commands(self) -> bool:
        """Apply everything in the inbox, and what comes until a step is due. False: quit."""
        try:
            connection, command = self._next() if self._engine.has_work else self._wait()
            while True:
                if isinstance(command, Quit):
                    return False
                self._apply(connection, command)
                connection, command = self._next()
        except Empty:
            return True

    def _next(self) -> tuple[int, Command]:
        """Waits while no step is due. Raises Empty."""
        left = self._engine.plan_at - self._clock()
        return self._inbox.get(timeout=left) if left > 0 else self._inbox.get_nowait()

    def _wait(self) -> tuple[int, Command]:
        """Use an idle moment: prepare one thing, or prove integrity, and raise Empty. Without need of it, wait."""
        if not self._prepared:
            return self._wait_for(QUIET_SECONDS, self._prepare)
        if self._unproven:
            return self._wait_for(IDLE_SECONDS, self._prove)
        return self._inbox.get()

    def _wait_for(self, seconds: float, use: Callable[[], None]) -> tuple[int, Command]:
        left = self._idle_since + seconds - self._clock()
        try:
            return self._inbox.get(timeout=left) if left > 0 else self._inbox.get_nowait()
        except Empty:
            use()
            self._idle_since = self._clock()
            raise

    def _prepare(self) -> None:
        with self.pulse.within(PREPARE_SECONDS):
            self._prepared = not self._engine.prepare()

    def _prove(self) -> None:
        self._engine.check_integrity()
        self._unproven = False

    def _apply(self, connection: int, command: Command) -> None:
        match command:
            case messages.Add(handle, request, sent_at):
                self._add(connection, handle, request, sent_at)
            case messages.Abort(handle):
                self._abort(self._routes.request_id(connection, handle))
            case messages.Stop(handle, index):
                self._stop(self._routes.request_id(connection, handle), index)
            case messages.GetStats(serial):
                self._post(connection, messages.Stats(serial, self._engine.stats()))
            case SetDraining(draining):
                self._engine.set_draining(draining)
            case SetSleeping(sleeping):
                self._rest.want(sleeping)
                self._prepared = False  # an engine asleep says that nothing is left
            case Closed():
                for request_id in self._routes.of_connection(connection):
                    self._abort(request_id)

    def _add(self, connection: int, handle: int, request: EngineRequest, sent_at: float | None) -> None:
        """Admit or refuse, and answer before any of the request's work."""
        try:
            if request.request_id in self._routes:
                raise InvalidRequest(f"request id {request.request_id!r} is in use", "request_id")
            self._engine.add(request, sent_at)
        except InvalidRequest as error:
            self._post(connection, messages.Refused(handle, "invalid", error.message, error.param, error.code))
        except Rejected as error:
            refusal = messages.Refused(
                handle,
                "rejected",
                error.message,
                reason=error.reason,
                retry_after_seconds=error.retry_after_seconds,
            )
            self._post(connection, refusal)
        else:
            self._routes.add(connection, handle, request)
            self._post(connection, messages.Accepted(handle))
            self._added = True

    def _abort(self, request_id: str | None) -> None:
        if request_id is not None:
            self._routes.remove(request_id)
            self._engine.abort(request_id)
            self._unproven = True

    def _stop(self, request_id: str | None, index: int) -> None:
        if request_id is not None:
            self._routes.end_sample(request_id, index)
            self._engine.stop(request_id, index)
            self._unproven = True

    # --- steps

    def _step(self) -> None:
        load = self._load_if_due()
        self.pulse.begin(self.pulse.allowed_seconds if load is None else self._fit.allowed(load))
        began = self._clock()
        deltas = self._engine.step()
        self._idle_since = self._clock()
        self._last_seconds = self._idle_since - began
        self.pulse.end()
        if load is not None:
            self._fit.observe(load, self._last_seconds)
        self._unproven = True
        for connection, rows in self._routes.split(deltas).items():
            self._post(connection, rows)

    def _load_if_due(self) -> StepLoad | None:
        """The coming step's load, if it is to be predicted anew: after an admission, a slow step, or a while."""
        now = self._clock()
        due = self._added or self._last_seconds > SLOW_STEP_SECONDS or now - self._sampled_at >= SAMPLE_SECONDS
        if not due:
            return None
        self._added, self._sampled_at = False, now
        return self._engine.load(self._max_step_tokens)
