"""When an engine counts as hung: a pure judge of its heartbeats.

`advance` is called on the supervisor's own clock. A gap between two calls counts for at most MAX_GAP_SECONDS, so that
a supervisor that was itself stopped (a frozen node, a suspended laptop) does not blame the engine.
"""

from __future__ import annotations

MAX_GAP_SECONDS = 1.0
SILENCE_SECONDS = 10.0  # a living engine process sends four heartbeats a second, whatever its step loop does


class StallWatch:
    """`timeout` overrides both rules: what heartbeats allow for a step, and how long they may be missing."""

    def __init__(self, timeout: float | None, now: float) -> None:
        self._timeout = timeout
        self._silence_limit = SILENCE_SECONDS if timeout is None else timeout
        self._last = now
        self._silent = 0.0
        self._busy = 0.0
        self._allowed = float("inf")
        self._in_step = True

    def heartbeat(self, busy_seconds: float, allowed_seconds: float, in_step: bool = True) -> None:
        """`in_step`: whether it is a step of requests that makes it busy."""
        self._silent = 0.0
        self._busy = busy_seconds
        self._in_step = in_step
        self._allowed = self._timeout if in_step and self._timeout is not None else allowed_seconds

    def advance(self, now: float) -> None:
        gap = min(now - self._last, MAX_GAP_SECONDS)
        self._last = now
        self._silent += gap
        if self._busy > 0.0:
            self._busy += gap

    def verdict(self) -> str | None:
        """Why the engine hangs; None while it does not."""
        if self._busy > self._allowed:
            what = "no step finished" if self._in_step else "sleep, waking or a preparation went on"
            waits = " while work was waiting" if self._in_step else ""
            return f"{what} for {self._busy:.1f} s{waits}; {self._allowed:.1f} s are allowed"
        if self._silent > self._silence_limit:
            return f"no sign of life for {self._silent:.1f} s; {self._silence_limit:.1f} s are allowed"
        return None
