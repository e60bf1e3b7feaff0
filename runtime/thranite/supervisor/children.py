"""The supervisor's children: started by `subprocess`, spoken to over an inherited socket pair, watched to their end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from thranite.ipc import control
from thranite.ipc.channel import Channel
from thranite.ipc.framing import FrameError

logger = logging.getLogger(__name__)

OnMessage = Callable[[control.FromChild], None]
OnEnd = Callable[[int], None]  # takes the return code


@dataclass(frozen=True, slots=True)
class ChildCommands:
    """How children are started; tests put fakes in their place."""

    engine: tuple[str, ...] = (sys.executable, "-m", "thranite.supervisor.engine_process")
    server: tuple[str, ...] = (sys.executable, "-m", "thranite.server.process")


class Child:
    """One process. `returncode` is set once it has ended and all it said has been taken."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], channel: Channel) -> None:
        self.name = name
        self.returncode: int | None = None
        self._process, self._channel = process, channel
        self._watch: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls,
        name: str,
        command: Sequence[str],
        first: control.ToChild,
        on_message: OnMessage,
        on_end: OnEnd,
        listener: socket.socket | None = None,
    ) -> Child:
        """Start it and send `first`. `listener` is inherited. A session of its own keeps the terminal's Ctrl-C away."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        arguments = [*command, "--control-fd", str(theirs.fileno())]
        inherited = [theirs.fileno()]
        if listener is not None:
            arguments += ["--listen-fd", str(listener.fileno())]
            inherited.append(listener.fileno())
        with theirs:
            process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, pass_fds=inherited, start_new_session=True)
        child = cls(name, process, await Channel.open(ours))
        child.send(first)
        child._watch = asyncio.create_task(child._follow(on_message, on_end), name=f"{name}-process")
        return child

    def send(self, message: control.ToChild) -> None:
        self._channel.send(message)

    def signal(self, number: int) -> None:
        if self.returncode is None:
            self._process.send_signal(number)

    async def ended(self, timeout: float) -> bool:
        """Whether it ends within `timeout` seconds."""
        if self._watch is not None:
            await asyncio.wait([self._watch], timeout=timeout)
        return self.returncode is not None

    async def kill(self) -> None:
        """End it now, whatever it does, and reap it."""
        self.signal(signal.SIGKILL)
        if self._watch is not None:
            await asyncio.wait([self._watch])

    async def _follow(self, on_message: OnMessage, on_end: OnEnd) -> None:
        try:
            async for payload in self._channel.payloads():
                on_message(control.decode_from_child(payload))
        except (FrameError, control.DecodeError):
            logger.exception("the %s process sent what cannot be read; it is ended", self.name)
            self._process.kill()
        self.returncode = await asyncio.to_thread(self._process.wait)
        await self._channel.close()
        on_end(self.returncode)
