"""An engine's sleep, between two steps: what is wanted, what is, and how long the change took."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from thranite.ipc.control import Slept
from thranite.loader.device_memory import format_bytes

logger = logging.getLogger(__name__)


class Sleeping(Protocol):
    """What this needs of `thranite.engine.engine.Engine`."""

    @property
    def has_work(self) -> bool: ...
    def set_sleepy(self, sleepy: bool) -> None: ...
    def sleep(self) -> int: ...
    def wake(self) -> int: ...


class Rest:
    """For the step loop's thread. Every wish is answered through `tell`, also one that changes nothing."""

    def __init__(self, engine: Sleeping, tell: Callable[[Slept], None], clock: Callable[[], float]) -> None:
        self._engine, self._tell, self._clock = engine, tell, clock
        self._asleep = False
        self._wanted: bool | None = None  # None: nothing is asked for

    def want(self, asleep: bool) -> None:
        self._wanted = asleep
        if not self._asleep:
            self._engine.set_sleepy(asleep)

    @property
    def due(self) -> bool:
        """Whether something is wanted that no request is in the way of."""
        return self._wanted is False or (self._wanted is True and not self._engine.has_work)

    def advance(self) -> None:
        """Between steps, once it is due: do what is wanted."""
        wanted, self._wanted = self._wanted is True, None
        began = self._clock()
        freed, error = 0, None
        if wanted and not self._asleep:
            freed = self._engine.sleep()
        elif not wanted and self._asleep and (missing := self._engine.wake()):
            wanted = True
            error = f"the device lacks {format_bytes(missing)} of free memory for it: what others hold must go first"
        self._asleep = wanted
        seconds = self._clock() - began
        if error is None:
            logger.info("%s after %.2f s", f"asleep, {format_bytes(freed)} given back," if wanted else "awake", seconds)
        self._tell(Slept(wanted, seconds, freed, error))
