"""A server process alone: the test plays its supervisor and its engine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

import thranite
from tests.support.engine_thread import engine_thread
from thranite.config import EngineConfig
from thranite.errors import ExitCode
from thranite.ipc import control
from thranite.ipc.framing import FrameReader, frame
from thranite.ipc.http_options import HttpOptions

TIMEOUT = 30.0
START = control.StartServer(
    config=EngineConfig(model="tiny", device="null", skip_tokenizer_init=True),
    served_model_names=("tiny",),
    api_keys=(),
    chat_template=None,
    generation_config="none",
    max_body_bytes=1 << 20,
    tokenizer_threads=1,
    http=HttpOptions(),
    log_level="info",
)


class Process:
    """`url`: where it answers."""

    def __init__(self, process: subprocess.Popen[bytes], supervisor: socket.socket, url: str) -> None:
        self.process, self.url = process, url
        self._supervisor = supervisor
        self._reader = FrameReader()
        self._messages: list[control.FromChild] = []
        supervisor.settimeout(TIMEOUT)

    def send(self, message: control.ToChild) -> None:
        self._supervisor.sendall(frame(control.encode(message)))

    def hang_up(self) -> None:
        self._supervisor.close()

    def until(self, kind: type[control.FromChild]) -> control.FromChild:
        """The next message of that kind."""
        while True:
            while self._messages:
                message = self._messages.pop(0)
                if isinstance(message, kind):
                    return message
            chunk = self._supervisor.recv(65536)
            assert chunk, "the process hung up"
            self._messages += [control.decode_from_child(payload) for payload in self._reader.feed(chunk)]


@contextmanager
def server_process() -> Iterator[Process]:
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.create_server(("127.0.0.1", 0)) as listener:
        fds = ["--control-fd", str(theirs.fileno()), "--listen-fd", str(listener.fileno())]
        process = subprocess.Popen(
            [sys.executable, "-m", "thranite.server.process", *fds],
            pass_fds=[theirs.fileno(), listener.fileno()],
            env={**os.environ, "PYTHONPATH": str(Path(thranite.__file__).parents[1])},
        )
        theirs.close()
        try:
            yield Process(process, ours, f"http://127.0.0.1:{listener.getsockname()[1]}")
        finally:
            process.kill()
            process.wait(TIMEOUT)


def test_a_lost_connection_to_a_living_engine_ends_the_process() -> None:
    with server_process() as server:
        with engine_thread() as engine:
            server.send(START)
            server.send(control.EngineUp(str(engine.path), {}))
            server.until(control.ServerReady)
            body = {"model": "tiny", "prompt": [5, 6], "max_tokens": 3}
            assert httpx.post(f"{server.url}/v1/completions", json=body).status_code == 200
        began = time.monotonic()
        answer = httpx.post(f"{server.url}/v1/completions", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_dead")
        fatal = server.until(control.ChildFatal)
        assert isinstance(fatal, control.ChildFatal)
        assert "connection to a running engine was lost" in fatal.cause
        assert server.process.wait(TIMEOUT) == ExitCode.FAILURE
        assert time.monotonic() - began < 20


def test_it_quits_when_told_and_when_the_supervisor_is_gone() -> None:
    with server_process() as server, engine_thread() as engine:
        server.send(START)
        server.send(control.EngineUp(str(engine.path), {}))
        server.until(control.ServerReady)
        server.send(control.Draining(True, True))
        while server.until(control.ServerBeat) != control.ServerBeat(0, True):
            continue
        server.send(control.Shutdown())
        assert server.process.wait(TIMEOUT) == ExitCode.OK
    with server_process() as server:
        server.send(START)
        server.until(control.ServerBeat)
        server.hang_up()
        assert server.process.wait(TIMEOUT) == ExitCode.FAILURE
