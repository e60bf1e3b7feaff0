"""What every child of the supervisor does first, and how it speaks to it before its own loop runs."""

from __future__ import annotations

import argparse
import faulthandler
import gc
import logging
import resource
import signal
import socket
import sys
from collections.abc import Sequence

from thranite.errors import ExitCode, StartupError
from thranite.ipc import control
from thranite.ipc.framing import HEADER, frame

GC_THRESHOLDS = (50_000, 10, 10)
LOG_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def parse_fds(argv: Sequence[str], *names: str) -> dict[str, int]:
    """Inherited file descriptors from `--<name>-fd N`."""
    parser = argparse.ArgumentParser()
    for name in names:
        parser.add_argument(f"--{name}-fd", dest=name, type=int, required=True)
    return dict(vars(parser.parse_args(argv)))


def prepare() -> None:
    """Signals belong to the supervisor: it decides when a child ends. A fatal signal prints every thread's stack.

    Every stream is an open file, and containers often begin with a soft limit of 1,024: it is raised to the hard one.
    """
    faulthandler.enable()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def settle_memory() -> None:
    """At the end of startup: what it made stays, so later collections need not look at it.

    Nor need they come with every few hundred objects: a step brings thousands of deltas at once, and all go again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def configure_logging(level: str) -> None:
    logging.basicConfig(level=level.upper(), format=LOG_FORMAT, stream=sys.stderr, force=True)


def receive(sock: socket.socket) -> control.ToChild:
    """Wait for one whole message. Raises EOFError when the supervisor is gone."""
    (length,) = HEADER.unpack(_exactly(sock, HEADER.size))
    return control.decode_to_child(_exactly(sock, length))


def send(sock: socket.socket, message: control.FromChild) -> None:
    sock.sendall(frame(control.encode(message)))


def startup_failure(stage: str, error: Exception) -> control.StartupFailed:
    """What the supervisor is told of an exception during startup."""
    if isinstance(error, StartupError):
        return control.StartupFailed(stage, type(error).__name__, error.message, error.hint, int(error.exit_code))
    return control.StartupFailed(stage, type(error).__name__, str(error), None, int(ExitCode.FAILURE))


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = sock.recv(size - len(data))
        if not chunk:
            raise EOFError("the supervisor is gone")
        data += chunk
    return bytes(data)
