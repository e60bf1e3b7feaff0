"""Whether the queue takes one more request: bounded by requests and by their tokens, with a share kept for priority.

Pure: what waits is passed in. The answer to one refused tells when to come back: what waits now, at the rate at which
the queue was left in the last seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from thranite.errors import InvalidRequest, Rejected

WINDOW_SECONDS = 10.0
SAMPLE_SECONDS = 0.25
LEAST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds that a refused client is told to wait


@dataclass(frozen=True, slots=True)
class Amount:
    """Requests, and the tokens of their prompts."""

    requests: int
    tokens: int


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """`reserved_share` of both bounds is for requests of high priority (below 0)."""

    requests: int
    tokens: int
    reserved_share: float = 0.0

    def open_to(self, priority: int) -> Amount:
        """What may wait, at most, for a request of this priority to be queued."""
        share = 0.0 if priority < 0 else self.reserved_share
        return Amount(self.requests - int(share * self.requests), self.tokens - int(share * self.tokens))


class DrainRate:
    """How fast the queue is left, over the last WINDOW_SECONDS: from counts that only grow."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, Amount]] = deque()

    def observe(self, left: Amount, now: float) -> None:
        """`left`: all that has left the queue so far. Cheap enough for every step."""
        if self._samples and now - self._samples[-1][0] < SAMPLE_SECONDS:
            return
        self._samples.append((now, left))
        while self._samples[0][0] < now - WINDOW_SECONDS:
            self._samples.popleft()

    def seconds_for(self, waiting: Amount) -> float:
        """How long `waiting` takes to leave; LEAST_WAIT while nothing is known."""
        if len(self._samples) < 2:
            return LEAST_WAIT
        (since, first), (until, last) = self._samples[0], self._samples[-1]
        span = until - since
        needed = max(
            _seconds(waiting.requests, last.requests - first.requests, span),
            _seconds(waiting.tokens, last.tokens - first.tokens, span),
        )
        return min(max(needed, LEAST_WAIT), LONGEST_WAIT)


def _seconds(waiting: int, left: int, span: float) -> float:
    if waiting == 0:
        return 0.0
    return LONGEST_WAIT if left == 0 else waiting * span / left


def refuse_oversized(limits: QueueLimits, prompts: Sequence[int], priority: int, param: str) -> None:
    """`prompts`: the tokens of each that one request brings. Raises InvalidRequest where no queue takes them all."""
    most, tokens = limits.open_to(priority), sum(prompts)
    if len(prompts) > most.requests:
        raise InvalidRequest(
            f"{param} holds {len(prompts)} prompts; at most {most.requests} requests of this priority may wait",
            param,
            "too_many_prompts",
        )
    if len(prompts) > 1 and tokens > most.tokens:
        raise InvalidRequest(
            f"the prompts of {param} have {tokens} tokens together; at most {most.tokens} of this priority may wait",
            param,
            "too_many_prompts",
        )


def check_room(limits: QueueLimits, waiting: Amount, tokens: int, priority: int, rate: DrainRate) -> None:
    """Raises Rejected where a request of so many tokens finds no room.

    An empty queue takes any request: one that exceeds the bound on tokens by itself can still be served.
    """
    most = limits.open_to(priority)
    if waiting.requests >= most.requests:
        raise Rejected(f"{waiting.requests} requests are waiting already", "queue_full", rate.seconds_for(waiting))
    if waiting.requests and waiting.tokens + tokens > most.tokens:
        raise Rejected(
            f"{waiting.tokens} tokens are waiting already, and {most.tokens} may",
            "queue_full",
            rate.seconds_for(waiting),
        )
