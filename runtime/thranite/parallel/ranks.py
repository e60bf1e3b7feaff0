"""The further ranks of an engine: started, watched, and ended by a thread of rank 0's process.

When one is lost, the engine is: the others are killed, so that no rank waits in a collective for ever, and the cause is
kept for whoever runs the engine.
"""

from __future__ import annotations

import logging
import os
import selectors
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from thranite.errors import EngineDead, ThraniteError
from thranite.layers.communicator import Communicator
from thranite.parallel import rank_child
from thranite.parallel.rank_child import SILENT_SECONDS, RankChild, RingEnds
from thranite.parallel.rank_messages import RankStart
from thranite.parallel.ring import RingWriter, create_memory
from thranite.parallel.step_clock import StepClock

CAUSE_SECONDS = 2.0  # for the cause of an exception on rank 0 to be found on another rank

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.25
STACKS_SECONDS = 0.5  # for ranks that hang to print their stacks before they are killed
CLOSE_SECONDS = 5.0
ABORT_SECONDS = 1.0
STORE_NAME = "store"


class RankWatcher(Protocol):
    """Who runs the engine. Called from the watching thread."""

    def lost(self, error: ThraniteError) -> None:
        """The engine cannot go on: EngineDead, or a StartupError. The other ranks are dead already. Called once."""

    def behind(self, text: str | None) -> None:
        """Which rank keeps the others waiting, and how; None: none does."""


def rendezvous() -> Path:
    """The file through which ranks will meet, in a directory that is ours alone."""
    return Path(tempfile.mkdtemp(prefix="thranite-ranks-")) / STORE_NAME


class Ranks:
    """Ranks 1 to size - 1. `watcher` None: this object judges by `clock` itself whether the engine hangs."""

    def __init__(self, start: RankStart, watcher: RankWatcher | None, clock: StepClock) -> None:
        self.failure: ThraniteError | None = None
        self.communicator: Communicator | None = None  # rank 0's, once there: aborted when a rank is lost
        self.start, self._watcher, self._clock = start, watcher, clock
        count = start.size - 1
        pipes = [os.pipe() for _ in range(count)]
        for _, writing in pipes:
            os.set_blocking(writing, False)
        self._memory_fd = create_memory(count)
        self._fds = [fd for pipe in pipes for fd in pipe]
        self._reading = [reading for reading, _ in pipes]
        self.ring = RingWriter(self._memory_fd, [writing for _, writing in pipes])
        self._children: list[RankChild] = []
        self._arrived = threading.Event()  # all are about to meet, or one has failed
        self._settled = threading.Event()  # all are ready, or one has failed
        self._found = threading.Event()  # the failure is known and the others are dead
        self._closing = threading.Event()
        self._behind: str | None = None
        self._thread = threading.Thread(target=self._run, name="ranks", daemon=True)
        self._thread.start()

    # --- for rank 0's own thread

    def wait_arrived(self) -> None:
        """Until every rank is about to meet the others: that wait could not be broken off. Raises what ended one."""
        self._arrived.wait()
        self.check()

    def wait_ready(self) -> None:
        """Until every rank waits for steps. Raises what ended one."""
        self._settled.wait()
        self.check()

    def join(self, communicator: Communicator) -> None:
        """Rank 0 has met the others."""
        self.communicator = communicator
        if self.failure is not None:
            self._abort()

    def check(self) -> None:
        """Raise if a rank was lost."""
        if self.failure is not None:
            raise self.failure

    def failure_within(self, seconds: float) -> ThraniteError | None:
        """What the watching thread finds within so long: a collective fails here before its cause is known."""
        self._found.wait(seconds)
        return self.failure

    def fail(self, error: ThraniteError) -> None:
        """Rank 0 itself cannot go on."""
        if self.failure is None:
            self.failure = error
        self.give_up()

    def give_up(self) -> None:
        """End the others, whatever they do, and what rank 0's device waits for. After an error of that device its
        library may fail to, or never return."""
        self.close(kill=True)
        aborting = threading.Thread(target=self._abort, name="abort", daemon=True)
        aborting.start()
        aborting.join(ABORT_SECONDS)

    def close(self, *, kill: bool = False) -> None:
        """End what still runs. A rank that was told to stop, or sees this end of its socket closed, ends by itself;
        `kill`: it is not waited for."""
        if self._closing.is_set():
            return
        self._closing.set()
        if kill:
            self._kill(self._children)
        self._thread.join(CLOSE_SECONDS + 2 * TICK_SECONDS + STACKS_SECONDS)
        self.ring.close()
        for fd in (*self._fds, self._memory_fd):
            os.close(fd)
        self.forget_rendezvous()

    def forget_rendezvous(self) -> None:
        """The ranks have met."""
        shutil.rmtree(Path(self.start.store).parent, ignore_errors=True)

    # --- on the thread

    def _run(self) -> None:
        try:
            for rank in range(1, self.start.size):
                ring = RingEnds(self._memory_fd, self._reading[rank - 1])
                self._children.append(RankChild(replace(self.start, rank=rank), ring, rank_child.RANK_COMMAND))
            self._watch()
        except OSError as error:
            self._lose(EngineDead(f"the ranks cannot be started: {error}"))
        self._end()

    def _watch(self) -> None:
        """Until a rank is lost or this side closes."""
        with selectors.DefaultSelector() as selector:
            for child in self._children:
                selector.register(child.socket, selectors.EVENT_READ, child)
            while self.failure is None and not self._closing.is_set():
                for key, _ in selector.select(TICK_SECONDS):
                    child = key.data
                    if child.read() and child.failed is None:
                        continue
                    if not child.left():
                        self._lose(child.cause())
                        return
                    selector.unregister(child.socket)
                    child.gone = True
                if all(child.arrived for child in self._children):
                    self._arrived.set()
                if all(child.ready for child in self._children):
                    self._settled.set()
                    self._look()

    def _look(self) -> None:
        """Once every tick, while serving: who is silent, and whether the engine hangs."""
        text = self._who_is_behind()
        if text != self._behind:
            self._behind = text
            if self._watcher is not None:
                self._watcher.behind(text)
        verdict = self._clock.verdict() if self._watcher is None else None
        if verdict is not None:
            for child in self._children:
                child.signal(signal.SIGABRT)
            time.sleep(STACKS_SECONDS)
            self._lose(EngineDead(f"the engine hangs: {verdict}; {text or self._unfinished()}"))

    def _who_is_behind(self) -> str | None:
        """A rank without a sign of life: others that wait do so for it."""
        for index, child in enumerate(self._children):
            silent = child.silence(self.ring.beats(index))
            if silent > SILENT_SECONDS and not child.gone:
                return f"{child.name} gives no sign of life"
        return None

    def _unfinished(self) -> str:
        counts = [(child.name, self.ring.behind(index)) for index, child in enumerate(self._children)]
        late = [f"{name} has not finished {count} frames" for name, count in counts if count]
        return ", ".join(late) or "the other ranks have done all they were given"

    def _lose(self, error: ThraniteError) -> None:
        """Keep the cause, free whoever waits for the lost rank, and tell."""
        if self._closing.is_set():
            return
        logger.error("%s", error)
        self.failure = error
        self._kill(self._children)
        self.forget_rendezvous()
        for event in (self._found, self._arrived, self._settled):
            event.set()
        if self._watcher is not None:
            self._watcher.lost(error)
        self._abort()

    def _abort(self) -> None:
        if self.communicator is None:
            return
        try:
            self.communicator.abort()
        except RuntimeError as error:  # torch's; the cause is known and this is not it
            logger.debug("collectives could not be aborted: %s", error)

    def _kill(self, children: Sequence[RankChild]) -> None:
        for child in children:
            child.signal(signal.SIGKILL)

    def _end(self) -> None:
        """Let ranks that were told to stop end by themselves; reap all."""
        for child in self._children:
            child.socket.close()
        deadline = time.monotonic() + CLOSE_SECONDS
        for child in self._children:
            child.reap(max(deadline - time.monotonic(), 0.0))
