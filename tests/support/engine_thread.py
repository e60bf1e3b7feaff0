"""A fake engine behind real sockets, in threads of the test's process."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from tests.support.fake_stepping_engine import INFO, FakeEngine
from thranite.ipc import messages
from thranite.ipc.engine_loop import Closed, Command, EngineLoop, Quit
from thranite.ipc.hub import Hub


class EngineThread:
    """`closed`: the connections that the hub dropped or lost."""

    def __init__(self, path: Path, engine: FakeEngine, **hub: Any) -> None:
        self.path, self.engine = path, engine
        self.closed: list[int] = []
        self._inbox: SimpleQueue[tuple[int, Command]] = SimpleQueue()
        ours, self._supervisor = socket.socketpair()
        self.hub = Hub(
            ours,
            on_payload=lambda c, payload: self._inbox.put((c, messages.decode_to_engine(payload))),
            on_open=lambda c: self.hub.post(c, messages.Hello(messages.PROTOCOL, INFO)),
            on_closed=self._on_closed,
            on_tick=lambda: None,
            **hub,
        )
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        self._listener = listener
        self.loop = EngineLoop(engine, self._inbox, self.hub.post, max_step_tokens=64)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self.hub.start()
        self.hub.listen(self._listener)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.loop.run()
        except RuntimeError as error:
            self.hub.broadcast(messages.Fatal(f"RuntimeError: {error}"))

    def _on_closed(self, connection: int) -> None:
        self.closed.append(connection)
        self._inbox.put((connection, Closed()))

    def close(self) -> None:
        self._inbox.put((0, Quit()))
        self._thread.join(10)
        self.hub.close()
        self._supervisor.close()


@contextmanager
def engine_thread(engine: FakeEngine | None = None, **hub: Any) -> Iterator[EngineThread]:
    with tempfile.TemporaryDirectory() as directory:
        thread = EngineThread(Path(directory) / "engine.sock", engine or FakeEngine(0.002), **hub)
        thread.start()
        try:
            yield thread
        finally:
            thread.close()
