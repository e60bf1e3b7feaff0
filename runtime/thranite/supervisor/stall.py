"""When an engine counts as hung: a pure judge of its heartbeats.

`advance` is called on the supervisor's own clock. A gap between two calls counts for at most MAX_GAP_SECONDS, so that
a supervisor that was itself stopped (a frozen node, a suspended laptop) does not blame the engine.
"""

from __future__ import annotations

MAX_GAP_SECONDS = 1.0
SILENCE_SECONDS = 10.0  # a living engine process sends four heartbeats a second, whatever its step loop does


class StallWatch:
    """`timeout` overrides both rules: the allowance that heartbeats carry, and how long they may be missing."""

    def __init__(self, timeout: float | None, now: float) -> None:
        self._timeout = timeout
        self._silence_limit = SILENCE_SECONDS if timeout is None else timeout
        self._last = now
        self._silent = 0.0
        self._busy = 0.0
        self._allowed = float("inf")

    def heartbeat(self, busy_seconds: float, allowed_seconds: float) -> None:
        self._silent = 0.0
        self._busy = busy_seconds
        self._allowed = allowed_seconds if self._timeout is None else self._timeout

    def advance(self, now: float) -> None:
        gap = min(now - self._last, MAX_GAP_SECONDS)
        self._last = now
        self._silent += gap
        if self._busy > 0.0:
            self._busy += gap

    def verdict(self) -> str | None:
        """Why the engine hangs; None while it does not."""
        if self._busy > self._allowed:
            return f"no step finished for {self._busy:.1f} s while work was waiting; {self._allowed:.1f} s are allowed"
        if self._silent > self._silence_limit:
            return f"no sign of life for {self._silent:.1f} s; {self._silence_limit:.1f} s are allowed"
        return None
