"""The process that owns a server: starts the children, carries out what the Lifecycle decides, answers the admin port.

It holds no torch and no request, so it answers whatever its children do.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from thranite.config import EngineConfig
from thranite.errors import EngineDead
from thranite.ipc import control
from thranite.ipc.client import SocketEngineClient
from thranite.ipc.http_options import HttpOptions
from thranite.server.admin import build_admin_app
from thranite.server.http import make_http_server
from thranite.server.metrics_source import MetricsSource
from thranite.supervisor.children import Child, ChildCommands
from thranite.supervisor.config import ServeConfig
from thranite.supervisor.http_options import http_options
from thranite.supervisor.lifecycle import ENGINE, Action, Kill, Lifecycle, Order, Replace
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
        self.lifecycle = Lifecycle(config, time.monotonic)
        self._engine_config, self._config = engine_config, config
        self._commands = commands or ChildCommands()
        self._listeners = dict(zip(self.lifecycle.servers, listeners, strict=True))
        self._admin_listener = admin_listener
        self._socket_path = str(directory / "engine.sock")
        self._names = config.served_model_name or (engine_config.model,)
        self._metrics = MetricsSource(self._names[0])
        self._stages = StageLog()
        self._news = asyncio.Event()
        self._children: dict[str, Child] = {}
        self._client: SocketEngineClient | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._engine_up: control.EngineUp | None = None  # once the engine listens
        self._make_start: Callable[..., control.StartServer] | None = None  # takes the process_index

    def on_signal(self, number: int) -> None:
        self.lifecycle.on_signal(number)
        self._news.set()

    async def run(self) -> Outcome:
        app = build_admin_app(self.lifecycle, self._metrics, self._config.admin_key())
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
            case Order(child, message):
                self._children[child].send(message)
            case Kill(child):
                self._children[child].signal(signal.SIGKILL)
            case Replace(child):
                await self._start_server(child)

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
        start = control.StartEngine(self._engine_config, self._socket_path, self._config.log_level)
        await self._start(ENGINE, self._commands.engine, start)

    async def _start_server(self, name: str) -> None:
        """Also one that replaces another: it is told what the first was, whatever became of the files of keys."""
        assert self._make_start is not None
        start = self._make_start(process_index=self.lifecycle.servers.index(name))
        await self._start(name, self._commands.server, start, self._listeners[name])
        if self._engine_up is not None:
            self._children[name].send(self._engine_up)

    async def _start(
        self, name: str, command: tuple[str, ...], first: control.ToChild, listener: socket.socket | None = None
    ) -> None:
        take, ended = partial(self._take, name), partial(self._ended, name)
        self._children[name] = await Child.start(name, command, first, take, ended, listener)

    def _take(self, name: str, message: control.FromChild) -> None:
        self.lifecycle.take(name, message)
        match message:
            case control.StageProgress():
                self._stages.update(message)
            case control.StageNote():
                self._stages.note(message.text)
            case control.EngineReady():
                self._connecting = asyncio.create_task(self._connect(), name="connect")
        self._news.set()

    def _ended(self, name: str, returncode: int) -> None:
        self.lifecycle.child_ended(name, returncode)
        self._news.set()

    async def _connect(self) -> None:
        """The supervisor's own connection to the engine, for the figures; and the word to the server processes."""
        try:
            self._client = self._metrics.client = await SocketEngineClient.connect(self._socket_path)
        except EngineDead as error:
            logger.error("%s", error.cause)  # its process's end is noticed by itself
            return
        self._metrics.startup_seconds = self._stages.seconds
        self._engine_up = control.EngineUp(self._socket_path, self._stages.seconds)
        for name in self.lifecycle.servers:
            self._children[name].send(self._engine_up)

    async def _end_children(self) -> None:
        """The servers first: they still have to tell clients. Children that do not end in time are killed."""
        if self._connecting is not None:
            self._connecting.cancel()
        if self._client is not None:
            await self._client.close()
        for listener in self._listeners.values():
            listener.close()
        if self.lifecycle.hung is not None:
            await self._end_hung(self._children[ENGINE])
        await asyncio.gather(*(self._end_child(name) for name in self.lifecycle.servers))
        await self._end_child(ENGINE)

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
