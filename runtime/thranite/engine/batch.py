"""Requests given at once, queued one by one: the first step need not wait until the last of them is taken in."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from thranite.engine.engine import Engine
from thranite.errors import InvalidRequest
from thranite.request import EngineRequest


class Batch:
    """Feeds an engine's queue whenever a step looks for a request and none waits. One at a time an engine.

    A step takes waiting requests strictly in order, so prompts are begun as from a queue that held all from the start.
    They have one priority, and ids that differ. Each is checked before any is queued: what `Engine.add` then raised in
    the midst of a step would end the engine. Whatever happens, the caller ends the batch, and aborts its requests where
    they have not ended.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._coming: deque[EngineRequest] = deque()
        self._arrival: float | None = None

    def add(
        self, requests: Iterable[EngineRequest], step_tokens: int | None = None, lengths_known: bool = False
    ) -> None:
        """Until the batch ends a step has `step_tokens` at most, where that is fewer than the settings' number, and if
        `lengths_known`, as each request produces all that it may, sequences pause where the others fill tiles. Raises
        what `Engine.add` raises, and says of which request."""
        if step_tokens is not None:
            self._engine.scheduler.step_tokens = step_tokens
        self._engine.scheduler.whole_tiles = lengths_known
        self._arrival = self._engine.now
        self._coming.extend(requests)
        ids: set[str] = set()
        for request in self._coming:
            try:
                self._engine.check(request)
                if request.request_id in ids:
                    raise InvalidRequest("its id is another's of the batch", "request_id")
                ids.add(request.request_id)
            except InvalidRequest as error:
                raise error.of(f"request {request.request_id!r}") from error
        if any(request.grammar is not None for request in self._coming):  # they compile while their requests wait
            while self._coming:
                self._queue_next()
        if self._coming:
            self._engine.scheduler.queue.refill = self._queue_next
            self._queue_next()

    def _queue_next(self) -> None:
        request = self._coming.popleft()
        if not self._coming:
            self._engine.scheduler.queue.refill = None
        self._engine.add(request, self._arrival)

    def end(self) -> None:
        """Queue no more of them; steps are planned as ever."""
        self._coming.clear()
        scheduler = self._engine.scheduler
        scheduler.queue.refill, scheduler.step_tokens = None, scheduler.settings.max_num_batched_tokens
        scheduler.whole_tiles = False
