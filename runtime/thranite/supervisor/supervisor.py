"""The process that owns a server: starts the children, carries out what the Lifecycle decides, answers the admin port.

It holds no torch and no request, so it answers whatever its children do.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import signal
import socket
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from thranite.config import EngineConfig
from thranite.errors import ConfigError, Rejected
from thranite.ipc import control
from thranite.ipc.http_options import HttpOptions
from thranite.server.admin import build_admin_app
from thranite.server.admin_models import model_routes
from thranite.server.admin_sleep import sleep_routes
from thranite.server.http import make_http_server
from thranite.server.metrics_source import MetricsSource
from thranite.server.model_options import ModelDefaults
from thranite.supervisor.actions import Action, End, Forget, Kill, Launch, Order, Replace
from thranite.supervisor.children import Child, ChildCommands
from thranite.supervisor.config import ServeConfig
from thranite.supervisor.engine_link import EngineLink
from thranite.supervisor.http_options import http_options
from thranite.supervisor.lifecycle import ENGINE, Lifecycle
from thranite.supervisor.stage_log import StageLog
from thranite.supervisor.termination import Outcome

logger = logging.getLogger("thranite")

TICK_SECONDS = 0.1
CHILD_EXIT_SECONDS = 5.0  # a child that was told to end is killed after so long
STACKS_SECONDS = 1.0  # for a hung engine to print its stacks before it is killed


class Supervisor:
    """One `thranite serve`. The listeners are bound already, one for each server process.

    They stay open here: connections that come while a server process is replaced wait for the new one.
    """

    def __init__(
        self,
        engine_config: EngineConfig,
        config: ServeConfig,
        listeners: Sequence[socket.socket],
        admin_listener: socket.socket,
        directory: Path,
        commands: ChildCommands | None = None,
    ) -> None:
        self._names = config.served_model_name or (engine_config.model,)
        self.lifecycle = Lifecycle(config, time.monotonic, self._names, engine_config.model)
        self._engine_config, self._config = engine_config, config
        self._commands = commands or ChildCommands()
        self._listeners = dict(zip(self.lifecycle.servers, listeners, strict=True))
        self._admin_listener = admin_listener
        self._directory = directory
        self._defaults = ModelDefaults(engine_config, config.pooling, config.generation_config)
        self._metrics = MetricsSource(self._names[0])
        self._stages = StageLog()
        self._news = asyncio.Event()
        self._children: dict[str, Child] = {}
        first = EngineLink(engine_config, str(directory / "engine.sock"), self._metrics.first, self._stages)
        self._links = {ENGINE: first}  # by the engine's child
        self._numbers = itertools.count(1)  # of added models' sockets
        self._endings: set[asyncio.Task[None]] = set()
        self._make_start: Callable[..., control.StartServer] | None = None  # takes the process_index

    def on_signal(self, number: int) -> None:
        self.lifecycle.on_signal(number)
        self._news.set()

    def _add(self, definition: control.AddModel) -> None:
        """One of the command line. Raises ConfigError."""
        try:
            self.lifecycle.load_model(definition)
        except Rejected as error:
            raise ConfigError(f"--add-model {definition.name}: {error.message}") from error

    async def run(self) -> Outcome:
        for definition in map(self._defaults.parse, self._config.add_model):
            self._add(definition)
        routes = [*model_routes(self.lifecycle, self._defaults), *sleep_routes(self.lifecycle)]
        app = build_admin_app(self.lifecycle, self._metrics, self._config.admin_key(), routes)
        options = HttpOptions(access_log=self._config.access_log, access_log_prompts=self._config.access_log_prompts)
        admin = make_http_server(app, options)
        admin_task = asyncio.create_task(admin.serve([self._admin_listener]), name="admin")
        try:
            outcome = self.lifecycle.outcome
            if outcome is None:
                await self._start_children()
                outcome = await self._follow()
        finally:
            self._stages.close()
            await self._end_children()
            admin.should_exit = True
            await admin_task
        return outcome

    async def _follow(self) -> Outcome:
        """Until the lifecycle has an outcome, carry its orders out."""
        while True:
            for action in self.lifecycle.advance(time.monotonic()):
                await self._carry_out(action)
            self._metrics.draining = self.lifecycle.draining
            if self.lifecycle.started:
                self._stages.close()
            if self.lifecycle.outcome is not None:
                return self.lifecycle.outcome
            try:
                await asyncio.wait_for(self._news.wait(), TICK_SECONDS)
            except TimeoutError:
                continue
            self._news.clear()

    # --- children

    async def _carry_out(self, action: Action) -> None:
        match action:
            case Order(child) | Kill(child) if child not in self._children:
                logger.debug("the %s process was never started", child)  # the system refused it meanwhile
            case Order(child, message):
                self._children[child].send(message)
            case Kill(child):
                self._children[child].signal(signal.SIGKILL)
            case Replace(child):
                await self._start_server(child)
            case Launch(child, model):
                await self._launch(child, model)
            case End(child, hung):
                self._end_later(self._end_hung(self._children[child]) if hung else self._end_child(child))
            case Forget(child, model_name):
                self._children.pop(child, None)
                self._metrics.remove(model_name)
                if (link := self._links.pop(child, None)) is not None:
                    await link.close()

    async def _start_children(self) -> None:
        config = self._config
        self._make_start = partial(
            control.StartServer,
            config=self._engine_config,
            served_model_names=self._names,
            api_keys=tuple((key.value, key.key_class) for key in config.api_keys()),
            chat_template=config.chat_template_source(),
            generation_config=config.generation_config,
            max_body_bytes=config.max_body_bytes,
            tokenizer_threads=config.tokenizer_threads,
            http=http_options(config),
            log_level=config.log_level,
            tool_call_parser=config.tool_call_parser,
            reasoning_parser=config.reasoning_parser,
            pooling=config.pooling,
        )
        for name in self.lifecycle.servers:
            await self._start_server(name)
        await self._start_engine(ENGINE)

    async def _start_server(self, name: str) -> None:
        """Also one that replaces another: it is told what the first was, whatever became of the files of keys."""
        assert self._make_start is not None
        start = self._make_start(process_index=self.lifecycle.servers.index(name))
        await self._start(name, self._commands.server, start, self._listeners[name])
        messages: list[control.ToChild] = [*self.lifecycle.added.definitions]
        messages.append(control.ModelStates(self.lifecycle.model_states()))
        messages += [link.up for link in self._links.values() if link.up is not None]
        for message in messages:
            self._children[name].send(message)

    async def _start_engine(self, name: str) -> None:
        await self._start(name, self._commands.engine, self._links[name].start_message(self._config.log_level))

    async def _launch(self, name: str, model: control.AddModel) -> None:
        """An added model's engine; each model keeps its socket's path."""
        if name not in self._links:
            path = self._directory / f"engine-{next(self._numbers)}.sock"
            figures, stages = self._metrics.add(model.name), StageLog(prefix=f"{model.name}: ")
            self._links[name] = EngineLink(model.config, str(path), figures, stages, model.name)
        try:
            await self._start_engine(name)
        except OSError as error:
            self.lifecycle.added.engine_not_started(name, f"its process cannot be started: {error}")

    async def _start(
        self, name: str, command: tuple[str, ...], first: control.ToChild, listener: socket.socket | None = None
    ) -> None:
        take, ended = partial(self._take, name), partial(self._ended, name)
        self._children[name] = await Child.start(name, command, first, take, ended, listener)

    def _take(self, name: str, message: control.FromChild) -> None:
        self.lifecycle.take(name, message)
        stages = self._links[name].stages if name in self._links else self._stages
        match message:
            case control.StageProgress():
                stages.update(message)
            case control.StageNote():
                stages.note(message.text)
            case control.EngineReady():
                self._links[name].ready(self._tell_servers)
        self._news.set()

    def _ended(self, name: str, returncode: int) -> None:
        if name in self._links and name != ENGINE:
            self._links[name].ended()
        self.lifecycle.child_ended(name, returncode)
        self._news.set()

    def _tell_servers(self, message: control.ToChild) -> None:
        for name in self.lifecycle.servers:
            self._children[name].send(message)

    async def _end_children(self) -> None:
        """The servers first: they still have to tell clients, unless nothing was served yet, when what they are at is
        not waited for. Children that do not end in time are killed."""
        for link in self._links.values():
            await link.close()
        for listener in self._listeners.values():
            listener.close()
        if self.lifecycle.hung is not None:
            await self._end_hung(self._children[ENGINE])
        if not self.lifecycle.started:
            unheard = [self._children[name] for name in self.lifecycle.servers if name in self._children]
            await asyncio.gather(*(child.kill() for child in unheard))
        await asyncio.gather(*(self._end_child(name) for name in self.lifecycle.servers))
        await asyncio.gather(*(self._end_child(name) for name in self._links), *self._endings)

    def _end_later(self, work: Coroutine[Any, Any, None]) -> None:
        """An added model's engine ends while the others go on."""
        task = asyncio.create_task(work, name="end")
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)

    async def _end_child(self, name: str) -> None:
        child = self._children.get(name)
        if child is None:
            return
        child.send(control.Shutdown())
        if not await child.ended(CHILD_EXIT_SECONDS):
            logger.warning("the %s process does not end; it is killed", child.name)
            await child.kill()

    async def _end_hung(self, engine: Child) -> None:
        """SIGABRT prints every thread's stack, if the process can still run at all."""
        engine.signal(signal.SIGABRT)
        if not await engine.ended(STACKS_SECONDS):
            await engine.kill()
