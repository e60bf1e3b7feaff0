"""Startup as the terminal shows it: one line a stage with its time, and a progress bar where a person watches."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, TextIO

from thranite.ipc.control import StageProgress

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

logger = logging.getLogger("thranite")


class StageLog:
    """Also the record of how long each stage took, for the metrics. `prefix`: before every line; then without bars."""

    def __init__(self, stream: TextIO | None = None, prefix: str = "") -> None:
        stream = stream or sys.stderr
        self.seconds: dict[str, float] = {}
        self._prefix = prefix
        self._bars = _make_bars(stream) if stream.isatty() and not prefix else None
        self._tasks: dict[str, TaskID] = {}

    def update(self, event: StageProgress) -> None:
        if not event.done:
            self._show(event)
            return
        self.seconds[event.stage] = self.seconds.get(event.stage, 0.0) + event.seconds
        self._hide(event.stage)
        logger.info("%s%s: %.2f s", self._prefix, event.stage, event.seconds)

    def note(self, text: str) -> None:
        logger.info("%s%s", self._prefix, text)

    def close(self) -> None:
        if self._bars is not None:
            self._bars.stop()

    def _show(self, event: StageProgress) -> None:
        if self._bars is None:
            return
        if event.stage not in self._tasks:
            self._bars.start()
            self._tasks[event.stage] = self._bars.add_task(event.stage, total=None)
        if event.fraction is not None:
            self._bars.update(self._tasks[event.stage], total=1.0, completed=event.fraction)

    def _hide(self, stage: str) -> None:
        if self._bars is not None and stage in self._tasks:
            self._bars.remove_task(self._tasks.pop(stage))
            if not self._tasks:
                self._bars.stop()


def _make_bars(stream: TextIO) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=Console(file=stream),
        transient=True,
    )
