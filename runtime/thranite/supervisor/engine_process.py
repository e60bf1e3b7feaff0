"""The engine process: `python -m thranite.supervisor.engine_process --control-fd N`, started by the supervisor.

The main thread builds the engine and steps it; a second one owns the sockets. The process ends with its supervisor,
at once, whatever the main thread is doing.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue

from thranite.config import EngineConfig
from thranite.engine.client import EngineInfo
from thranite.engine.progress import Progress
from thranite.errors import ExitCode, StartupError, ThraniteError
from thranite.ipc import child, control, messages
from thranite.ipc.engine_loop import Closed, Command, EngineLoop, Quit, SetDraining, SetSleeping, SteppingEngine
from thranite.ipc.hub import CONTROL, Hub
from thranite.ipc.stages import StageReporter
from thranite.loader.memory_needs import DEFAULTS
from thranite.parallel.rank_process import end
from thranite.parallel.ranks import RankWatcher

BACKLOG = 128  # more than all server processes, which connect at once: beyond it they are refused
# Upper guess for the stall rule where the budget is not set.
DEFAULT_STEP_TOKENS = max(kind.max_num_batched_tokens for kind in DEFAULTS.values())

OWN_CAUSE_SECONDS = 0.5  # what fails on every rank alike is told as the main thread's own failure

BuildEngine = Callable[[EngineConfig, Progress, RankWatcher], tuple[SteppingEngine, EngineInfo]]


class EngineProcess:
    """Ties the loop to the sockets. Implements `RankWatcher`."""

    def __init__(self, supervisor: socket.socket, start: control.StartEngine, build: BuildEngine) -> None:
        self._start, self._build = start, build
        self._inbox: SimpleQueue[tuple[int, Command]] = SimpleQueue()
        self._loop: EngineLoop | None = None
        self._info: EngineInfo | None = None
        self._behind: str | None = None
        self._ending = threading.Lock()  # taken for good by the thread that tells why this process fails
        self._progress = StageReporter(lambda event: self._hub.post(CONTROL, event))
        self._hub = Hub(
            supervisor,
            on_payload=self._take,
            on_open=self._greet,
            on_closed=self._closed,
            on_tick=self._beat,
        )

    def run(self) -> ExitCode:
        self._hub.start()
        progress = self._progress
        try:
            engine, self._info = self._build(self._start.config, progress, self)
        except Exception as error:  # noqa: BLE001 - every failure is reported to the supervisor
            if not isinstance(error, StartupError):
                traceback.print_exc()
            return self._tell_failure(error)
        progress.finish()
        child.settle_memory()
        return self._serve(engine)

    def _serve(self, engine: SteppingEngine) -> ExitCode:
        assert self._info is not None
        tokens = self._start.config.max_num_batched_tokens or DEFAULT_STEP_TOKENS
        self._loop = EngineLoop(
            engine,
            self._inbox,
            self._hub.post,
            max_step_tokens=tokens,
            tell=lambda slept: self._hub.post(CONTROL, slept),
        )
        self._hub.listen(_listen(self._start.socket_path))
        self._hub.post(CONTROL, control.EngineReady(self._info))
        try:
            self._loop.run()
            engine.close()
        except Exception as error:  # noqa: BLE001 - the engine's state is unknown now: tell everybody and end
            traceback.print_exc()
            return self._tell_failure(error)
        self._hub.close()
        return ExitCode.OK

    def _tell_failure(self, error: Exception) -> ExitCode:
        """Tell everybody why this process ends. Of two threads that fail the first does; the other waits here."""
        self._ending.acquire()
        if self._loop is None:
            failure = child.startup_failure(self._progress.name, error)
            self._hub.post(CONTROL, failure)
            code = ExitCode(failure.exit_code)
        else:
            cause = f"{type(error).__name__}: {error}"
            self._hub.broadcast(messages.Fatal(cause))
            self._hub.post(CONTROL, control.ChildFatal(cause))
            code = ExitCode.ENGINE_DIED
        self._hub.close()
        return code

    # --- RankWatcher, on the thread that watches the ranks

    def lost(self, error: ThraniteError) -> None:
        if self._loop is None:
            time.sleep(OWN_CAUSE_SECONDS)
        os._exit(self._tell_failure(error))  # the main thread may wait for a device that never answers

    def behind(self, text: str | None) -> None:
        self._behind = text

    # --- on the socket thread

    def _take(self, connection: int, payload: bytes) -> None:
        if connection != CONTROL:
            self._inbox.put((connection, messages.decode_to_engine(payload)))
            return
        order = control.decode_to_child(payload)
        if isinstance(order, control.Shutdown):
            self._inbox.put((CONTROL, Quit()))
        elif isinstance(order, control.Draining):
            self._inbox.put((CONTROL, SetDraining(order.refusing)))
        elif isinstance(order, control.Sleep):
            self._inbox.put((CONTROL, SetSleeping(order.asleep)))

    def _greet(self, connection: int) -> None:
        assert self._info is not None
        self._hub.post(connection, messages.Hello(messages.PROTOCOL, self._info))

    def _closed(self, connection: int) -> None:
        if connection == CONTROL:
            os._exit(ExitCode.FAILURE)  # the supervisor is gone; the main thread may be inside the device's driver
        self._inbox.put((connection, Closed()))

    def _beat(self) -> None:
        if self._loop is not None:
            pulse = self._loop.pulse
            allowed, in_step = pulse.allowed_seconds, pulse.in_step  # read first: what has begun since is not long busy
            beat = control.Heartbeat(pulse.steps, pulse.busy_seconds, allowed, self._behind, in_step)
            self._hub.post(CONTROL, beat)


def main(argv: Sequence[str], build: BuildEngine) -> int:
    """Run an engine process on `build`'s engine."""
    child.prepare()
    threading.excepthook = _thread_failed
    supervisor = socket.socket(fileno=child.parse_fds(argv, "control")["control"])
    start = child.receive(supervisor)
    assert isinstance(start, control.StartEngine)
    child.configure_logging(start.log_level)
    return EngineProcess(supervisor, start, build).run()


def _listen(path: str) -> socket.socket:
    Path(path).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(BACKLOG)
    return listener


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """No thread of an engine may end by an exception and leave the others waiting."""
    traceback.print_exception(failure.exc_value)
    os._exit(ExitCode.ENGINE_DIED)


if __name__ == "__main__":
    from thranite.engine.served import build_served_engine

    code = main(sys.argv[1:], build_served_engine)
    sys.stdout.flush()
    end(code)  # whoever waits for this process has its last word already
