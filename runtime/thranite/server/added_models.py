"""A server process's part in models beside the first: their tokenizers, and its connections to their engines.

Each model has a task: it reads the texts, then follows the model's engine through its deaths and restarts, and tells
the supervisor when requests are answered here. Which models there are is the supervisor's to say.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from thranite.engine.client import EngineClient
from thranite.errors import EngineDead, StartupError
from thranite.ipc import control
from thranite.ipc.client import SocketEngineClient
from thranite.server.context import ServerContext
from thranite.server.directory import ModelDirectory
from thranite.server.metrics_source import MetricsSource
from thranite.server.settings import ServerSettings
from thranite.server.text_files import added_texts
from thranite.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

RECONNECT_SECONDS = 5.0  # a connection that was lost while its engine lives is made again
POLL_SECONDS = 0.02

Wrap = Callable[[EngineClient, str], EngineClient]


class AddedModels:
    """Belongs to one event loop. `wrap`: what a client becomes before requests go through it (traces)."""

    def __init__(
        self,
        start: control.StartServer,
        directory: ModelDirectory,
        metrics: MetricsSource,
        send: Callable[[control.FromChild], None],
        wrap: Wrap,
    ) -> None:
        self._start, self._directory, self._metrics = start, directory, metrics
        self._send, self._wrap = send, wrap
        self._models: dict[str, _AddedModel] = {}
        self._removals: set[asyncio.Task[None]] = set()

    def add(self, order: control.AddModel) -> None:
        """Repeated orders change nothing, unless the model was given up: then its texts are read again."""
        known = self._models.get(order.name)
        if known is not None and known.leaving:
            known.later.append(order)
        elif known is None or known.task.done():
            self._metrics.add(order.name)
            self._models[order.name] = _AddedModel(order.name, self._follow(order))

    def engine_up(self, order: control.EngineUp) -> None:
        model = self._models.get(order.model or "")
        if model is not None and model.leaving:
            model.later.append(order)
        elif model is not None:
            model.expected = True
            model.engines.put_nowait(order)

    def cut_off(self, message: str, name: str | None = None) -> None:
        """End all open requests, or those of one model."""
        for model in self._models.values():
            if model.client is not None and name in (None, model.name):
                model.cut = model.leaving  # else it may be a sleep, after which others come
                model.client.cut_off(message)

    def remove(self, name: str) -> None:
        model = self._models.get(name)
        if model is None:
            self._send(control.ModelGone(name))
            return
        model.later.clear()
        if model.leaving:
            return
        model.leaving = True
        self._directory.withdraw(name)
        task = asyncio.create_task(self._removal(model), name=f"remove {name}")
        self._removals.add(task)
        task.add_done_callback(self._removals.discard)

    async def settled(self, seconds: float) -> None:
        """Until every model whose engine was up by now is served here, or cannot be; for at most so long."""
        deadline = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < deadline:
            if not any(model.expected and not model.task.done() for model in self._models.values()):
                return
            await asyncio.sleep(POLL_SECONDS)

    async def close(self) -> None:
        tasks = [*(model.task for model in self._models.values()), *self._removals]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(model.client.close() for model in self._models.values() if model.client is not None))

    # --- a model's task

    async def _follow(self, order: control.AddModel) -> None:
        try:
            await self._serve(order.name, *await asyncio.to_thread(added_texts, self._start, order))
        except Exception as error:  # noqa: BLE001 - whatever it is, this model is not served, and others are
            self._directory.withdraw(order.name)
            self._metrics.add(order.name).reset()
            client = self._models[order.name].give_up()
            if client is not None:
                await client.close()
            self._refuse(order.name, error)

    async def _serve(self, name: str, tokenizer: Tokenizer | None, settings: ServerSettings) -> None:
        """Without end, but for what keeps it from being served."""
        model, up = self._models[name], None
        while True:
            up = await model.next_engine(up)
            try:
                client = model.client = await SocketEngineClient.connect(up.socket_path)
            except EngineDead as error:
                logger.debug("model %s: %s", name, error.cause)  # its death is the supervisor's to judge
                continue
            figures = self._metrics.add(name)
            figures.client, figures.startup_seconds = client, up.startup_seconds
            settings = dataclasses.replace(settings, created=up.loaded_at)
            model.context = self._directory.serve(self._wrap(client, name), tokenizer, settings)
            model.expected = False
            self._send(control.ModelServed(name))
            await asyncio.wait([client.closed])
            self._directory.withdraw(name)
            figures.reset()
            model.give_up()

    def _refuse(self, name: str, error: Exception) -> None:
        if not isinstance(error, StartupError):
            logger.exception("model %s cannot be served", name, exc_info=error)
        text = error.message if isinstance(error, StartupError) else str(error)
        self._send(control.ModelRefused(name, f"{type(error).__name__}: {text}"))

    async def _removal(self, model: _AddedModel) -> None:
        """Let its requests end, or be ended; then forget it, and say so, unless the name is to be served again."""
        while model.busy:
            await asyncio.sleep(POLL_SECONDS)
        model.task.cancel()
        await asyncio.gather(model.task, return_exceptions=True)
        self._directory.withdraw(model.name)
        if model.client is not None:
            await model.client.close()
        del self._models[model.name]
        self._metrics.remove(model.name)
        for order in model.later:
            if isinstance(order, control.AddModel):
                self.add(order)
            else:
                self.engine_up(order)
        if model.name not in self._models:
            self._send(control.ModelGone(model.name))


class _AddedModel:
    """One of them. `client`, `context`: while its engine is connected. `expected`: that listens, and it is not served
    here yet. `leaving`: it is being removed; `later`: orders for the next one of its name. `cut`: its requests were
    ended."""

    def __init__(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        self.name = name
        self.client: SocketEngineClient | None = None
        self.engines: asyncio.Queue[control.EngineUp] = asyncio.Queue()
        self.context: ServerContext | None = None
        self.expected = self.leaving = self.cut = False
        self.later: list[control.AddModel | control.EngineUp] = []
        self.task = asyncio.create_task(work, name=f"model {name}")

    @property
    def busy(self) -> bool:
        """Whether requests are open, be it that they are still tokenised: those of a cut-off are not waited for."""
        preparing = self.context is not None and self.context.preparing > 0 and not self.cut
        return preparing or (self.client is not None and self.client.open_requests > 0)

    def give_up(self) -> SocketEngineClient | None:
        """Its client, if there is one, which is no longer its own."""
        client, self.client, self.context, self.cut = self.client, None, None, False
        return client

    async def next_engine(self, last: control.EngineUp | None) -> control.EngineUp:
        """The next one to connect to: a new one, or after a while the last one again, which may live."""
        try:
            up = await asyncio.wait_for(self.engines.get(), None if last is None else RECONNECT_SECONDS)
            while not self.engines.empty():
                up = self.engines.get_nowait()
            return up
        except TimeoutError:
            assert last is not None
            return last
