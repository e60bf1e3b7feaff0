"""Where a process that answers `/metrics` takes the figures from: the engines, at each scrape."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response

from thranite.engine.client import EngineClient
from thranite.engine.stats import EngineStats
from thranite.errors import EngineDead
from thranite.server.metrics import MetricsSnapshot, all_families, render

ANSWER_SECONDS = 2.0  # a scrape waits so long for the step in progress, then tells the last figures and their age


class EngineFigures:
    """One engine's. `client` is set once the engine is up; before that every value is 0."""

    def __init__(self, model_name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.client: EngineClient | None = None
        self.startup_seconds: Mapping[str, float] = {}
        self._model_name = model_name
        self._clock = clock
        self._stats = EngineStats()
        self._taken_at: float | None = None

    async def snapshot(self, draining: bool) -> MetricsSnapshot:
        age = await self._refresh()
        return MetricsSnapshot(self._model_name, self._stats, age, draining, dict(self.startup_seconds))

    def reset(self) -> None:
        """The engine is gone: nothing waits and nothing runs; what counted begins at 0 with the next one."""
        self.client, self.startup_seconds = None, {}
        self._stats, self._taken_at = EngineStats(), None

    async def _refresh(self) -> float:
        """Take the engine's figures of now; the age of those held, if it does not answer."""
        client = self.client
        if client is None:
            return 0.0
        try:
            stats = await asyncio.wait_for(client.stats(), ANSWER_SECONDS)
        except (TimeoutError, EngineDead):
            return 0.0 if self._taken_at is None else self._clock() - self._taken_at
        if client is self.client:
            self._stats, self._taken_at = stats, self._clock()
        return 0.0


class MetricsSource:
    """The figures of all engines that a process knows, the first model's first."""

    def __init__(self, model_name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.draining = False
        self.first = EngineFigures(model_name, clock)
        self._added: dict[str, EngineFigures] = {}

    def add(self, model_name: str) -> EngineFigures:
        """Those of a model beside the first, from now on."""
        return self._added.setdefault(model_name, EngineFigures(model_name))

    def remove(self, model_name: str) -> None:
        self._added.pop(model_name, None)

    async def snapshots(self) -> list[MetricsSnapshot]:
        engines = [self.first, *self._added.values()]
        return await asyncio.gather(*(figures.snapshot(self.draining) for figures in engines))

    async def endpoint(self, request: Request) -> Response:
        """GET /metrics, with `?name[]=` for some families only."""
        names = request.query_params.getlist("name[]")
        families = all_families(await self.snapshots())
        body, content_type = render(families, names, request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})
