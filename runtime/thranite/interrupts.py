"""Ctrl-C where an engine runs in the caller's process: between two of its steps.

Inside a step it would leave the engine and its device with different ideas of which step comes next.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any


class BetweenSteps:
    """Within it SIGINT is kept until the function that it gives is called, or until the end; a second one takes effect
    at once, after the first.

    What SIGINT then does is what it did before. In other threads than the main one, which never see it, and where it is
    ignored or not handled in Python, nothing changes.
    """

    def __init__(self) -> None:
        self._handler: Callable[[int, FrameType | None], Any] | None = None
        self._kept: list[FrameType | None] = []

    def __enter__(self) -> Callable[[], None]:
        handler = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is threading.main_thread() and callable(handler):
            self._handler = handler
            try:
                signal.signal(signal.SIGINT, self._keep)
            except ValueError:  # a subinterpreter's main thread
                self._handler = None
        return self.deliver

    def __exit__(self, *_: object) -> None:
        if self._handler is not None and signal.getsignal(signal.SIGINT) == self._keep:
            try:
                signal.signal(signal.SIGINT, self._handler)
            except BaseException:  # a second one was heard first, and nothing set
                signal.signal(signal.SIGINT, self._handler)
                raise
        self.deliver()

    def deliver(self) -> None:
        if self._kept and self._handler is not None:
            self._handler(signal.SIGINT, self._kept.pop())

    def _keep(self, _: int, frame: FrameType | None) -> None:
        second = bool(self._kept)
        self._kept.insert(0, frame)
        if second:
            self.deliver()
            self.deliver()
