"""One drain, as plain data: when requests are refused, when running ones are cut off, when it ends itself.

began ── drain delay: requests are still admitted ── refusing ── running ones finish ── deadline: cut off
                                              … and 60 s after the deadline, without a termination: serve again
"""

from __future__ import annotations

from dataclasses import dataclass, replace

EXPIRY_SECONDS = 60.0
FLUSH_SECONDS = 3.0  # between cutting requests off and what ends then, for their last events to be written


@dataclass(frozen=True, slots=True)
class Drain:
    """Times are seconds of one clock. `terminating`: the process ends with this drain, which cannot be undone."""

    began: float
    delay: float
    deadline: float
    terminating: bool = False

    def with_deadline(self, seconds: float) -> Drain:
        """Asked again: `seconds` count from the drain's beginning, so that a repeated request changes nothing."""
        return replace(self, deadline=self.began + seconds)

    def terminate(self, now: float, timeout: float) -> Drain:
        """A termination came: finish by the earlier of this drain's deadline and `timeout` from now."""
        return replace(self, terminating=True, deadline=min(self.deadline, now + timeout))

    def hurry(self, now: float) -> Drain:
        """Cut running requests off now."""
        return replace(self, deadline=min(self.deadline, now))

    def refusing(self, now: float) -> bool:
        return now >= min(self.began + self.delay, self.deadline)

    def cutting_off(self, now: float) -> bool:
        return now >= self.deadline

    def expired(self, now: float) -> bool:
        """No termination followed: the server goes back to work."""
        return not self.terminating and now >= self.deadline + EXPIRY_SECONDS
