"""How long a step may keep rank 0 waiting, where no supervisor judges that (an LLM in its caller's process)."""

from __future__ import annotations

import time
from collections.abc import Callable

from thranite.engine.step_time import FIRST_STEP_SECONDS, StepLoad, StepTimeFit


class StepClock:
    """Time inside calls to the device, which end with each step. Written by the engine's thread, read by another."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._fit = StepTimeFit()
        self._allowed = FIRST_STEP_SECONDS
        self._load: StepLoad | None = None
        self._since: float | None = None
        self._spent = 0.0

    def plan(self, tokens: int) -> None:
        """A step of so many tokens follows."""
        self._finish()
        self._load = StepLoad(tokens, 0)
        self._allowed = self._fit.allowed(self._load)

    def allow(self, seconds: float) -> None:
        """What follows is no step, and may take so long."""
        self._finish()
        self._allowed = seconds

    def _finish(self) -> None:
        if self._load is not None:
            self._fit.observe(self._load, self._spent)
        self._load, self._spent = None, 0.0

    def enter(self) -> None:
        self._since = self._clock()

    def leave(self) -> None:
        if self._since is not None:
            self._spent += self._clock() - self._since
            self._since = None

    def verdict(self) -> str | None:
        """Why the engine hangs; None while it does not."""
        since = self._since
        waited = 0.0 if since is None else self._clock() - since
        if waited <= self._allowed:
            return None
        return f"no step finished for {waited:.1f} s; {self._allowed:.1f} s are allowed"
