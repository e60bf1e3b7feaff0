"""Ctrl-C where an engine runs in the caller's process: between two of its steps.

Inside a step it would leave the engine and its device with different ideas of which step comes next.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def between_steps() -> Iterator[Callable[[], None]]:
    """Within it SIGINT is kept until the function that it gives is called, or until its end; a second one is not.

    What SIGINT then does is what it did before. Other threads than the main one never see it, and nothing changes for
    them, nor where SIGINT is ignored or ends the process.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield lambda: None
        return
    handle: Callable[[int, FrameType | None], object] = handler
    kept: list[FrameType | None] = []

    def keep(number: int, frame: FrameType | None) -> None:
        kept.append(frame)
        if len(kept) > 1:
            kept.clear()
            handle(number, frame)

    def deliver() -> None:
        if kept:
            handle(signal.SIGINT, kept.pop())

    signal.signal(signal.SIGINT, keep)
    try:
        yield deliver
    finally:
        signal.signal(signal.SIGINT, handler)
    deliver()
