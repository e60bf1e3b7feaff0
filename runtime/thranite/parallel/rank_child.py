"""One further rank as rank 0 sees it: its process, what it said, and its signs of life."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from thranite.errors import EngineDead, ExitCode, ThraniteError
from thranite.parallel.environment import RANK_ENVIRONMENT
from thranite.parallel.exits import describe_exit
from thranite.parallel.rank_messages import FromRank, RankDevice, RankFailed, RankReady, RankStart, decode

RANK_COMMAND: tuple[str, ...] = (sys.executable, "-m", "thranite.parallel.rank_process")
SILENT_SECONDS = 2.0  # a living rank beats four times a second
EXIT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class RingEnds:
    """What a rank inherits of the ring: its memory and the reading end of its pipe."""

    memory_fd: int
    wake_fd: int


class RankChild:
    """For the thread that started it: the kernel ends the process with that thread."""

    def __init__(self, start: RankStart, ring: RingEnds, command: Sequence[str] = RANK_COMMAND) -> None:
        self.rank = start.rank
        self.arrived = self.ready = self.gone = False
        self.failed: RankFailed | None = None
        self.device = f"{start.config.device}:{start.rank}"
        self._buffer = b""
        self._beats, self._beat_at = 0, time.monotonic()
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        fds = {"control": theirs.fileno(), "ring": ring.memory_fd, "wake": ring.wake_fd}
        arguments = [text for name, fd in fds.items() for text in (f"--{name}-fd", str(fd))]
        with theirs:
            # A session of its own keeps the terminal's Ctrl-C away.
            self._process = subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr.fileno() if _has_fd(sys.stderr) else None,
                pass_fds=list(fds.values()),
                env={**os.environ, **RANK_ENVIRONMENT},
                start_new_session=True,
            )
        self.socket.sendall(start.encode())

    @property
    def name(self) -> str:
        return f"rank {self.rank} (pid {self._process.pid}, {self.device})"

    def read(self) -> bool:
        """Take what it sent. False: it has closed its end."""
        try:
            data = self.socket.recv(65536)
        except ConnectionError:
            return False
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._take(decode(line))
        return bool(data)

    def _take(self, message: FromRank) -> None:
        match message:
            case RankDevice(name):
                self.device, self.arrived = name, True
            case RankReady():
                self.ready = True
            case RankFailed():
                self.failed = message

    def left(self) -> bool:
        """Whether it ended because rank 0 told it to; to be asked once its end of the socket is closed."""
        return self.ready and self.failed is None and self.reap(EXIT_SECONDS) == ExitCode.OK

    def cause(self) -> ThraniteError:
        """Why it ended; to be asked once its end of the socket is closed."""
        returncode = self.reap(EXIT_SECONDS)
        if self.failed is not None:
            return self.failed.raised(self.name)
        return EngineDead(describe_exit(self.name, returncode))

    def silence(self, beats: int) -> float:
        """Seconds without a sign of life, given its counter of beats."""
        now = time.monotonic()
        if beats != self._beats:
            self._beats, self._beat_at = beats, now
        return now - self._beat_at

    def signal(self, number: int) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)

    def reap(self, timeout: float) -> int:
        """Its return code; after `timeout` seconds it is killed."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            return self._process.wait()


def _has_fd(stream: object) -> bool:
    """Whether a stream is a file: notebooks and test runners replace it."""
    try:
        os.fstat(stream.fileno())  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):
        return False
    return True
