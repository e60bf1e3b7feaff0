"""Requests given at once, queued one by one: the first step need not wait until the last of them is taken in."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable

from thranite.engine.engine import Engine
from thranite.request import EngineRequest


class Batch:
    """Feeds an engine's queue, which is never empty while requests of the batch have not been queued.

    A step takes waiting requests strictly in order, so what follows is what would if all were queued before the first
    step. They have one priority, and `Engine.add` takes each of them.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._coming: deque[EngineRequest] = deque()
        self._arrival = 0.0

    def add(self, requests: Iterable[EngineRequest], step_tokens: int | None = None) -> None:
        """`step_tokens`: of a step at most, until the batch ends, if fewer than the settings'. Raises what `Engine.add`
        raises for the first request."""
        if step_tokens is not None:
            self._engine.scheduler.step_tokens = step_tokens
        self._arrival = time.monotonic()
        self._coming.extend(requests)
        # What waits tells how much of prompts a step takes, and grammars compile while their requests wait.
        at_once = self._engine.settings.prompt_time_ratio > 0 or any(r.grammar is not None for r in self._coming)
        self._queue_next()
        while at_once and self._coming:
            self._queue_next()
        self._engine.scheduler.queue.refill = self._queue_next if self._coming else None

    def _queue_next(self) -> None:
        if self._coming:
            self._engine.add(self._coming.popleft(), self._arrival)
        else:
            self._engine.scheduler.queue.refill = None

    def end(self) -> None:
        """Queue no more of them; steps are as large as ever."""
        self._coming.clear()
        scheduler = self._engine.scheduler
        scheduler.queue.refill, scheduler.step_tokens = None, scheduler.settings.max_num_batched_tokens
