"""The supervisor's own connection to one engine, for its figures; and the word to server processes that it is up."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from thranite.config import EngineConfig
from thranite.errors import EngineDead
from thranite.ipc import control
from thranite.ipc.client import SocketEngineClient
from thranite.server.metrics_source import EngineFigures
from thranite.supervisor.stage_log import StageLog

logger = logging.getLogger("thranite")


class EngineLink:
    """One engine process after another, all of one model; `model`: its name, None for the first.

    `up`: what server processes are told while the present one listens.
    """

    def __init__(
        self, config: EngineConfig, socket_path: str, figures: EngineFigures, stages: StageLog, model: str | None = None
    ) -> None:
        self.up: control.EngineUp | None = None
        self.stages = stages
        self._config, self._path, self._figures, self._model = config, socket_path, figures, model
        self._client: SocketEngineClient | None = None
        self._connecting: asyncio.Task[None] | None = None

    def start_message(self, log_level: str) -> control.StartEngine:
        return control.StartEngine(self._config, self._path, log_level)

    def ready(self, tell: Callable[[control.EngineUp], None]) -> None:
        """The engine listens: connect, then `tell` the server processes."""
        self._connecting = asyncio.create_task(self._connect(tell), name="connect")

    async def _connect(self, tell: Callable[[control.EngineUp], None]) -> None:
        try:
            client = await SocketEngineClient.connect(self._path)
        except EngineDead as error:
            logger.error("%s", error.cause)  # its process's end is noticed by itself
            return
        self._client = self._figures.client = client
        self._figures.startup_seconds = self.stages.seconds
        self.up = control.EngineUp(self._path, self.stages.seconds, self._model, int(time.time()))
        tell(self.up)

    def ended(self) -> None:
        """The process is gone; another one may follow. What the last one did is no figure any more."""
        self.up = None
        self._figures.reset()
        self.stages.seconds.clear()

    async def close(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
        if self._client is not None:
            await self._client.close()
