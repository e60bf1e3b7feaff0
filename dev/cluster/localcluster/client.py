"""Talks to a running cluster: its supervisor, the fault proxy's and the fake pods' control sockets."""

from __future__ import annotations

import http.client
import json
import os
import socket
from pathlib import Path
from typing import Any

from . import keeper
from .errors import ClusterError
from .namespaces import entering
from .paths import ClusterPaths
from .plan import Options

Answer = dict[str, Any]


def connect(path: Path) -> socket.socket:
    """Through the folder's descriptor: a socket's path has at most 107 characters."""
    folder = os.open(path.parent, os.O_RDONLY)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(120)
    try:
        connection.connect(f"/proc/self/fd/{folder}/{path.name}")
    except OSError as error:
        connection.close()
        raise ClusterError(f"nothing answers at {path}: {error}") from error
    finally:
        os.close(folder)
    return connection


class _SocketConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = connect(self._path)


def http_call(path: Path, method: str, url: str, body: str | None = None) -> str:
    connection = _SocketConnection(path)
    try:
        connection.request(method, url, body)
        response = connection.getresponse()
        text = response.read().decode()
    finally:
        connection.close()
    if response.status >= 300:
        raise ClusterError(text.strip() or f"{response.status} {response.reason}")
    return text


class RunningCluster:
    def __init__(self, name: str) -> None:
        self.paths = ClusterPaths.of(name)
        if not keeper.is_alive(self.paths) or not self.paths.control_socket.exists():
            raise ClusterError(f"no cluster named {name!r} is up: `python3 dev/cluster up --name {name}` starts one")
        self.options = Options.load(self.paths.options)

    def ask(self, command: str, target: str = "") -> Answer:
        with connect(self.paths.control_socket) as connection:
            connection.sendall(json.dumps({"do": command, "target": target}).encode() + b"\n")
            line = connection.makefile().readline()
        if not line:
            raise ClusterError(f"the cluster ended before it answered `{command}`")
        answer: Answer = json.loads(line)
        if "error" in answer:
            raise ClusterError(answer["error"])
        return answer

    @property
    def init_pid(self) -> int:
        return int(self.paths.init_pid.read_text())

    def enter(self, node: str = "") -> list[str]:
        """The words that run a command in the control plane's network, or in a node's network and file system."""
        init = f"/proc/{self.init_pid}"
        if not node:
            return ["nsenter", f"--net={init}/ns/net", "--"]
        if node not in {known.name for known in self.options.node_plans()}:
            raise ClusterError(f"no node {node!r}")
        return entering(self.paths, node, f"{init}/root/proc")
