"""A server process: `python -m thranite.server.process --control-fd N --listen-fd M`, started by the supervisor.

It answers on the inherited socket from the first moment: 503 while the model loads, then the API. It ends when the
supervisor says so, or at once when the supervisor is gone.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import uvloop
from starlette.routing import Route

from thranite.engine.client import EngineClient
from thranite.errors import EngineDead, ExitCode, StartupError
from thranite.ipc import child, control
from thranite.ipc.channel import Channel
from thranite.ipc.client import SocketEngineClient
from thranite.ipc.stages import StageReporter
from thranite.server.added_models import AddedModels
from thranite.server.directory import ModelDirectory
from thranite.server.gate import Gate
from thranite.server.http import make_http_server
from thranite.server.metrics_source import MetricsSource
from thranite.server.text_files import api_keys, load_first_tokenizer, make_settings

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from thranite.server.settings import ServerSettings
    from thranite.server.tracing import Tracing
    from thranite.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

BEAT_SECONDS = 0.25
VERDICT_SECONDS = 5.0  # within which the supervisor ends a server whose engine died
TEXT_STAGE = "read tokenizer"
SETTLE_SECONDS = 5.0  # a process that replaces another takes its time for models beside the first
LAST_RESPONSES_SECONDS = 2.0  # at the end, for final events to be written

Texts = tuple["Tokenizer | None", "ServerSettings"]
BuildApp = Callable[[EngineClient, "Tokenizer | None", "ServerSettings", Sequence[Route], ModelDirectory], "Starlette"]


class ServerProcess:
    """Belongs to one event loop."""

    def __init__(self, channel: Channel, start: control.StartServer, build_app: BuildApp) -> None:
        self._channel, self._start, self._build_app = channel, start, build_app
        self._metrics = MetricsSource(start.served_model_names[0])
        self._gate = Gate(self._metrics, self._on_requests, api_keys(start))
        self._client: SocketEngineClient | None = None
        self._models = ModelDirectory(start.served_model_names, start.tokenizer_threads)
        self._added = AddedModels(start, self._models, self._metrics, channel.send, self._traced)
        self._tracing: Tracing | None = None
        self._refusing = False
        self._quit = asyncio.Event()
        self._resources = AsyncExitStack()  # the application's, from the moment it exists
        self._engine_up: asyncio.Future[control.EngineUp] = asyncio.get_running_loop().create_future()

    async def run(self, listener: socket.socket) -> ExitCode:
        self._tracing = self._start_tracing()
        http = make_http_server(self._gate, self._start.http, self._start.max_body_bytes)
        serving = asyncio.create_task(http.serve([listener]), name="http")
        tasks = [
            asyncio.create_task(coroutine, name=name)
            for name, coroutine in (("startup", self._bring_up()), ("orders", self._obey()), ("beats", self._beat()))
        ]
        async with self._resources:
            code = await self._until_quit(serving, *tasks)
            await self._finish_responses()
            http.should_exit = True
            await asyncio.gather(serving, return_exceptions=True)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await self._channel.close()
        return code

    async def _until_quit(self, *tasks: asyncio.Task[None]) -> ExitCode:
        """Wait for the order to quit. The failure of any task is reported and ends the wait."""
        quitting = asyncio.create_task(self._quit_ordered(), name="quit")
        running = {quitting, *tasks}
        while not quitting.done():
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                failure = task.exception()
                if failure is not None:
                    quitting.cancel()
                    return self._report(failure)
        return ExitCode.OK

    async def _quit_ordered(self) -> None:
        await self._quit.wait()

    def _report(self, failure: BaseException) -> ExitCode:
        if not isinstance(failure, Exception):
            raise failure
        if isinstance(failure, StartupError):
            message = child.startup_failure(TEXT_STAGE, failure)
            self._channel.send(message)
            return ExitCode(message.exit_code)
        traceback.print_exception(failure)
        self._channel.send(control.ChildFatal(f"{type(failure).__name__}: {failure}"))
        return ExitCode.FAILURE

    # --- startup

    async def _bring_up(self) -> None:
        """Read the tokenizer while the engine loads, then connect, open the API, and watch over the connection."""
        tokenizer, settings = await asyncio.to_thread(self._read_texts, asyncio.get_running_loop())
        up = await self._engine_up
        self._client = await SocketEngineClient.connect(up.socket_path)
        settings = dataclasses.replace(settings, created=up.loaded_at)
        self._metrics.first.client = self._client
        routes = [Route("/metrics", self._metrics.endpoint)]
        client = self._traced(self._client)
        app = self._build_app(client, tokenizer, settings, routes, self._models)
        await self._resources.enter_async_context(app.router.lifespan_context(app))
        await self._added.settled(SETTLE_SECONDS)
        child.settle_memory()
        self._gate.app = app if self._tracing is None else self._tracing.app(app)
        self._channel.send(control.ServerReady())
        await self._watch_engine(self._client)

    def _traced(self, client: EngineClient, model: str | None = None) -> EngineClient:
        return client if self._tracing is None else self._tracing.client(client, model)

    def _start_tracing(self) -> Tracing | None:
        endpoint = self._start.http.otlp_traces_endpoint
        if endpoint is None:
            return None
        from thranite.server.tracing import Tracing  # an optional package's

        tracing = Tracing(self._start.served_model_names[0], endpoint)
        self._resources.push_async_callback(asyncio.to_thread, tracing.close)
        return tracing

    def _read_texts(self, loop: asyncio.AbstractEventLoop) -> Texts:
        """On a thread of its own."""
        stages = StageReporter(lambda event: self._from_thread(loop, event))
        stages.stage(TEXT_STAGE)
        texts = load_first_tokenizer(self._start.config), make_settings(self._start)
        stages.finish()
        return texts

    def _from_thread(self, loop: asyncio.AbstractEventLoop, message: control.FromChild) -> None:
        loop.call_soon_threadsafe(self._channel.send, message)

    async def _watch_engine(self, client: SocketEngineClient) -> None:
        """Refuse requests once the connection is lost. A dead engine is the supervisor's to judge; a live one, ours."""
        await asyncio.wait([client.closed])
        self._gate.dead = client.closed.result()
        await asyncio.sleep(VERDICT_SECONDS)
        raise EngineDead(f"the connection to a running engine was lost: {self._gate.dead.cause}")

    # --- the supervisor's orders

    async def _obey(self) -> None:
        async for payload in self._channel.payloads():
            self._take(control.decode_to_child(payload))
        os._exit(ExitCode.FAILURE)  # the supervisor is gone

    def _take(self, order: control.ToChild) -> None:
        match order:
            case control.EngineUp(model=None):
                self._metrics.first.startup_seconds = order.startup_seconds
                self._engine_up.set_result(order)
            case control.EngineUp():
                self._added.engine_up(order)
            case control.AddModel():
                self._added.add(order)
            case control.RemoveModel(name):
                self._added.remove(name)
            case control.ModelStates(states):
                self._models.note(states)
            case control.Draining(draining, refusing):
                self._gate.draining = self._metrics.draining = draining
                self._refusing = refusing
                self._send_beat()
            case control.CutOff(message, model):
                if model in (None, self._start.served_model_names[0]) and self._client is not None:
                    self._client.cut_off(message)
                self._added.cut_off(message, model)
            case control.Shutdown():
                self._quit.set()
            case control.StartEngine() | control.StartServer() | control.Sleep():
                raise RuntimeError(f"a server process was sent {type(order).__name__}")

    # --- what it tells

    async def _beat(self) -> None:
        while True:
            self._send_beat()
            await asyncio.sleep(BEAT_SECONDS)

    def _send_beat(self) -> None:
        self._channel.send(control.ServerBeat(self._gate.open_requests, self._refusing))

    def _on_requests(self) -> None:
        if self._refusing and self._gate.open_requests == 0:
            self._send_beat()

    async def _finish_responses(self) -> None:
        """Let responses that have ended reach their clients."""
        deadline = asyncio.get_running_loop().time() + LAST_RESPONSES_SECONDS
        while self._gate.open_requests and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
        await self._added.close()
        if self._client is not None:
            await self._client.close()


def main(argv: Sequence[str], build_app: BuildApp) -> int:
    """Run a server process with `build_app`'s API."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # batches of one need no pool of a thread a core
    child.prepare()
    fds = child.parse_fds(argv, "control", "listen")
    supervisor, listener = socket.socket(fileno=fds["control"]), socket.socket(fileno=fds["listen"])
    start = child.receive(supervisor)
    if not isinstance(start, control.StartServer):
        raise RuntimeError(f"a server process was started with {type(start).__name__}")
    child.configure_logging(start.log_level)

    async def run() -> ExitCode:
        process = ServerProcess(await Channel.open(supervisor), start, build_app)
        return await process.run(listener)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


if __name__ == "__main__":
    from thranite.server.app import build_app

    sys.exit(main(sys.argv[1:], build_app))
