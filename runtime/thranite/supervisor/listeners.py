"""The supervisor's sockets and its private directory."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from thranite.config import flag
from thranite.errors import ConfigError

BACKLOG = 2048
MAX_SOCKET_PATH = 107  # sun_path holds 108 bytes with its end
LONGEST_SOCKET_NAME = "engine-99999.sock"


def bind(host: str, port: int, name: str) -> socket.socket:
    """Listen on `host:port`; `name` is the option's. IPv6 addresses also take IPv4 where the system can."""
    try:
        return _create(host, port)
    except OSError as error:
        raise ConfigError(
            f"{flag(name)} {port}: {host} cannot be bound: {error.strerror or error}", "choose another port or address"
        ) from error


def bind_shared(host: str, port: int, name: str, count: int) -> list[socket.socket]:
    """`count` sockets that listen on one port: the kernel spreads new connections over them (SO_REUSEPORT).

    A socket of its own for each process, instead of one that all accept from: whoever wakes first would take most.
    """
    first = bind(host, port, name)  # without sharing: it fails where another program listens already
    if count == 1:
        return [first]
    with first:
        port = first.getsockname()[1]
    try:
        return [_create(host, port, reuse_port=True) for _ in range(count)]
    except OSError as error:
        raise ConfigError(f"{flag(name)} {port}: {host} cannot be shared: {error.strerror or error}") from error


def _create(host: str, port: int, reuse_port: bool = False) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    dual = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
    return socket.create_server(
        (host, port), family=family, backlog=BACKLOG, dualstack_ipv6=dual, reuse_port=reuse_port
    )


def url(listener: socket.socket, secure: bool = False) -> str:
    host, port = listener.getsockname()[:2]
    scheme = "https" if secure else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


@contextmanager
def private_directory(parent: str | None) -> Iterator[Path]:
    """A new directory that only this user can enter, in `parent` or the system's place for such; removed at the end."""
    try:
        if parent is not None:
            Path(parent).mkdir(mode=0o700, parents=True, exist_ok=True)
        path = Path(tempfile.mkdtemp(prefix="thranite-", dir=parent))
    except OSError as error:
        raise ConfigError(
            f"--runtime-dir {parent or tempfile.gettempdir()} cannot be used: {error.strerror}"
        ) from error
    try:
        if path.stat().st_mode & 0o777 != 0o700 or path.stat().st_uid != os.geteuid():
            raise ConfigError(f"{path} is not private to this user", "choose another --runtime-dir")
        if len(os.fsencode(path / LONGEST_SOCKET_NAME)) > MAX_SOCKET_PATH:
            raise ConfigError(f"{path} is too long for a socket's path", "choose a shorter --runtime-dir")
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
