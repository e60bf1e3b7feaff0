"""The waiting line: priorities with aging, preempted sequences first.

Every waiting request's score grows at the same rate with its waiting time, so the order between two of them never
changes and a fixed key serves: arrival + priority * aging_seconds. A request of priority p is overtaken only by ones
that arrive within p * aging_seconds after it, so nothing starves.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from thranite.engine.sequence import Sequence, State


class RequestQueue:
    """A heap of waiting sequences. Entries whose sequence no longer waits are dropped when they surface."""

    def __init__(self, aging_seconds: float) -> None:
        self._aging_seconds = aging_seconds
        self._heap: list[tuple[int, tuple[float, int, int], Sequence]] = []
        self._serial = 0
        self._waiting: set[int] = set()  # ids of the sequences
        self.tokens = 0  # of the prompts that wait
        self.left_requests = 0  # taken up for the first time, or ended in the queue, since the start
        self.left_tokens = 0
        self.refill: Callable[[], None] | None = None  # pushes another where one is looked for and none waits

    def __len__(self) -> int:
        return len(self._waiting)

    def order(self, priority: int, arrival: float) -> tuple[float, int]:
        """The key of a request that arrives now; ties go to the earlier call."""
        self._serial += 1
        return (arrival + priority * self._aging_seconds, self._serial)

    def push(self, seq: Sequence, *, preempted: bool = False) -> None:
        """Preempted sequences stand before all others."""
        heapq.heappush(self._heap, (0 if preempted else 1, seq.order, seq))
        self._waiting.add(id(seq))
        self.tokens += seq.prompt_len

    def peek(self) -> Sequence | None:
        """The head, which may come only now."""
        head = self._head()
        if head is None and self.refill is not None:
            self.refill()
            head = self._head()
        return head

    def _head(self) -> Sequence | None:
        while self._heap and self._heap[0][2].state is not State.WAITING:
            heapq.heappop(self._heap)
        return self._heap[0][2] if self._heap else None

    def pop(self) -> Sequence:
        """Remove the head, which `peek` returned."""
        preempted, _, seq = heapq.heappop(self._heap)
        self._leave(seq, first=preempted == 1)
        return seq

    def discard(self, seq: Sequence) -> None:
        """A sequence ended, which may wait here; its entry goes when it surfaces. The caller set its state."""
        self._leave(seq, first=True)
        if len(self._heap) > 2 * len(self) + 64:
            self._heap = [entry for entry in self._heap if entry[2].state is State.WAITING]
            heapq.heapify(self._heap)

    def _leave(self, seq: Sequence, first: bool) -> None:
        if id(seq) not in self._waiting:
            return
        self._waiting.remove(id(seq))
        self.tokens -= seq.prompt_len
        if first:
            self.left_requests += 1
            self.left_tokens += seq.prompt_len
