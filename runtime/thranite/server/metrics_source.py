"""Where a process that answers `/metrics` takes the figures from."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response

from thranite.engine.client import EngineClient
from thranite.engine.stats import EngineStats
from thranite.errors import EngineDead
from thranite.server.metrics import MetricsSnapshot, engine_families, render

ANSWER_SECONDS = 2.0  # a scrape waits so long for the step in progress, then tells the last figures and their age


class MetricsSource:
    """Asks the engine at each scrape. `client` is set once the engine is up; before that every value is 0."""

    def __init__(self, model_name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.client: EngineClient | None = None
        self.draining = False
        self.startup_seconds: Mapping[str, float] = {}
        self._model_name = model_name
        self._clock = clock
        self._stats = EngineStats()
        self._taken_at: float | None = None

    async def snapshot(self) -> MetricsSnapshot:
        age = await self._refresh()
        return MetricsSnapshot(self._model_name, self._stats, age, self.draining, dict(self.startup_seconds))

    async def endpoint(self, request: Request) -> Response:
        """GET /metrics, with `?name[]=` for some families only."""
        names = request.query_params.getlist("name[]")
        snapshot = await self.snapshot()
        body, content_type = render(engine_families(snapshot), names, request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    async def _refresh(self) -> float:
        """Take the engine's figures of now; the age of those held, if it does not answer."""
        if self.client is None:
            return 0.0
        try:
            self._stats = await asyncio.wait_for(self.client.stats(), ANSWER_SECONDS)
        except (TimeoutError, EngineDead):
            return 0.0 if self._taken_at is None else self._clock() - self._taken_at
        self._taken_at = self._clock()
        return 0.0
