"""When requests expire."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping

from thranite.engine.sequence import RequestState

_SPARE = 64


class Deadlines:
    """A heap over the engine's open requests (`requests`, by id), which it only reads. Entries of ended ones go when
    they surface, or when they are most of it: their deadlines may be days away."""

    def __init__(self, requests: Mapping[str, RequestState]) -> None:
        self._requests = requests
        self._heap: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, parent: RequestState) -> None:
        if parent.deadline is None:
            return
        if len(self._heap) > 2 * len(self._requests) + _SPARE:
            self._heap = [entry for entry in self._heap if self._open(*entry) is not None]
            heapq.heapify(self._heap)
        heapq.heappush(self._heap, (parent.deadline, parent.request.request_id))

    def due(self, now: float) -> Iterator[RequestState]:
        """Those open whose deadline has passed, each once; the earliest first."""
        while self._heap and self._heap[0][0] <= now:
            parent = self._open(*heapq.heappop(self._heap))
            if parent is not None:
                yield parent

    def _open(self, deadline: float, request_id: str) -> RequestState | None:
        """None also where the id is another request's by now."""
        parent = self._requests.get(request_id)
        return parent if parent is not None and parent.deadline == deadline else None
