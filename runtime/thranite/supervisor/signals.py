"""Signals from the first moment of `serve` to its last."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class SignalInbox:
    """Takes SIGTERM and SIGINT from now on, and keeps them until somebody listens.

    The kernel drops a signal without a handler for process 1 of a container; so none may come before there is one.
    """

    def __init__(self) -> None:
        self._early: list[int] = []
        self._deliver: Callable[[int], object] = self._early.append
        self._before = {number: signal.signal(number, self._take) for number in SIGNALS}

    def listen(self, loop: asyncio.AbstractEventLoop, listener: Callable[[int], None]) -> None:
        """Hand signals to `listener` on `loop`, first those that have come already."""
        self._deliver = lambda number: loop.call_soon_threadsafe(listener, number)
        for number in self._early:
            listener(number)

    def ignore(self) -> None:
        """The end is decided already."""
        self._deliver = self._early.append

    def close(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, _: FrameType | None) -> None:
        self._deliver(number)
