"""When the step in flight will end: until shortly before, its successor need not be planned.

A step that is planned late takes in the requests that came meanwhile; one planned at once leaves them to the next one.
The device must not run dry for that, so estimates are of the fastest steps among the last ones. A step that was read
late had ended before, nobody knows when: the next ones go without waiting until one is timed again, and the margin
doubles, which wears off slowly, so that a host that wakes late seldom does harm twice.
"""

from __future__ import annotations

from collections import deque

LAST_STEPS = 8  # of each kind
LONG_PROMPT = 128  # tokens from which a step tells what a prompt token costs
CAUTION = 0.95  # of what a step should take
PROMPT_CAUTION = 0.8  # of what its prompt tokens should: long prompts cost less a token than short ones
MARGIN, LARGEST_MARGIN = 0.0005, 0.01  # seconds, besides what planning and launching take
WEARS_OFF = 0.995  # of the margin remains after a step that was in time
TIMED = 0.0003  # seconds: a step that had to be waited for so long ended when it was read; reading takes some, too


class StepPace:
    """Fed by the step loop in the order of its steps; all times are of its clock."""

    def __init__(self) -> None:
        self._decodes: deque[float] = deque(maxlen=LAST_STEPS)  # seconds
        self._prompt_tokens: deque[float] = deque(maxlen=LAST_STEPS)  # seconds a token
        self._launches: deque[float] = deque(maxlen=LAST_STEPS)
        self._ended = 0.0  # the step read last
        self._margin = MARGIN

    def launched(self, prompt_tokens: int, seconds: float) -> None:
        """Planning and launching took the host so long. Steps with prompts begin to run before that is over."""
        if prompt_tokens == 0:
            self._launches.append(seconds)

    def read(self, prompt_tokens: int, launched_at: float, now: float, waited: float) -> float | None:
        """A step's results were read, after a wait. Returns how long it ran; None where it had ended before."""
        began, self._ended = max(self._ended, launched_at), now
        if waited < TIMED:
            self._late()
            return None
        self._margin = max(WEARS_OFF * self._margin, MARGIN)
        if prompt_tokens == 0:
            self._decodes.append(now - began)
        elif prompt_tokens >= LONG_PROMPT and self._decodes:
            self._prompt_tokens.append(max(now - began - min(self._decodes), 0.0) / prompt_tokens)
        return now - began

    def _late(self) -> None:
        """Only where steps were timed before has anybody waited."""
        if self._decodes:
            self._margin = min(2 * self._margin, LARGEST_MARGIN)
            self._decodes.clear()

    def plan_at(self, prompt_tokens: int, launched_at: float) -> float:
        """The latest moment to plan the successor of a step of so many prompt tokens; 0 where nobody knows."""
        if not self._decodes or not self._launches:
            return 0.0
        each = PROMPT_CAUTION * min(self._prompt_tokens) if self._prompt_tokens else 0.0
        runs = CAUTION * min(self._decodes) + each * prompt_tokens
        return max(self._ended, launched_at) + runs - max(self._launches) - self._margin
