"""A starting child's stages, told to the supervisor as they go."""

from __future__ import annotations

import time
from collections.abc import Callable

from thranite.ipc.control import StageNote, StageProgress

REPORT_SECONDS = 0.1  # at most so often within a stage


class StageReporter:
    """A `thranite.engine.progress.Progress` that sends messages. `name`: the present stage. For one thread."""

    def __init__(self, send: Callable[[StageProgress | StageNote], None]) -> None:
        self.name = "start"
        self._send = send
        self._began: float | None = None
        self._reported = 0.0

    def stage(self, name: str) -> None:
        self.finish()
        self.name = name
        self._began = self._reported = time.monotonic()
        self._send(StageProgress(name, None, 0.0))

    def advance(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._began is not None and now - self._reported >= REPORT_SECONDS:
            self._reported = now
            self._send(StageProgress(self.name, done / max(total, 1), now - self._began))

    def note(self, text: str) -> None:
        self._send(StageNote(text))

    def finish(self) -> None:
        """The present stage is over, if one has begun."""
        if self._began is not None:
            self._send(StageProgress(self.name, 1.0, time.monotonic() - self._began, done=True))
            self._began = None
