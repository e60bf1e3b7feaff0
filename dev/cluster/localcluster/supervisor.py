"""The supervisor: runs inside the cluster's namespaces, brings the cluster up, and obeys the control socket."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import threading
import traceback
from collections.abc import Callable
from typing import Any

from . import cgroups, cuts, network
from .boot import Cluster
from .errors import ClusterError
from .namespaces import entering
from .paths import ClusterPaths
from .plan import Options

Answer = dict[str, Any]


class Progress:
    """Tells `up` what is going on. When `up` is gone before the end, so is the cluster."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def step(self, text: str) -> None:
        self._send({"step": text})

    def ready(self) -> None:
        self._send({"ready": True})
        self._connection.close()

    def failed(self, text: str) -> None:
        self._send({"error": text})

    def _send(self, message: Answer) -> None:
        self._connection.sendall(json.dumps(message).encode() + b"\n")

    def end_with_listener(self, done: threading.Event) -> None:
        """Ends this process, and the cluster with it, once nobody listens any more."""
        while not done.is_set():
            readable, _, _ = select.select([self._connection], [], [], 0.2)
            if readable and not done.is_set():
                os._exit(3)


def supervise(arguments: list[str]) -> int:
    name, progress_descriptor, *listeners = arguments
    os.set_inheritable(int(progress_descriptor), False)
    connection = socket.socket(fileno=int(progress_descriptor))
    paths = ClusterPaths.of(name)
    options = Options.load(paths.options)
    cluster = Cluster(options, paths, [int(number) for number in listeners])
    progress, done = Progress(connection), threading.Event()
    watcher = threading.Thread(target=progress.end_with_listener, args=[done], daemon=True)
    watcher.start()
    try:
        cluster.up(progress.step)
        server = listen(paths)
    except Exception as error:  # noqa: BLE001  # all of them go to the user, and the cluster ends
        text = str(error) if isinstance(error, ClusterError) else traceback.format_exc()
        progress.failed(text)
        return 1
    done.set()
    watcher.join()
    progress.ready()
    Control(cluster, options).serve(server)
    return 0


def listen(paths: ClusterPaths) -> socket.socket:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder = os.open(paths.root, os.O_RDONLY)
    server.bind(f"/proc/self/fd/{folder}/{paths.control_socket.name}")  # a socket's path has at most 107 characters
    server.listen(16)
    os.close(folder)
    return server


class Control:
    """One request and one answer a connection, each a line of JSON: {"do": "kill", "target": "kube-apiserver"}."""

    def __init__(self, cluster: Cluster, options: Options) -> None:
        self._cluster = cluster
        self._options = options
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._cuts: dict[str, tuple[list[str], list[cuts.Rule]]] = {}
        self._commands: dict[str, Callable[[str], Answer]] = {
            "status": self._status,
            "kill": self._kill,
            "stop": lambda target: self._signal(target, signal.SIGSTOP),
            "resume": lambda target: self._signal(target, signal.SIGCONT),
            "start": self._start,
            "cut": self._cut,
            "heal": self._heal,
            "kwok": self._kwok,
            "down": self._down,
        }

    def serve(self, server: socket.socket) -> None:
        server.settimeout(0.2)
        while not self._ended.is_set():
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            threading.Thread(target=self._converse, args=[connection], daemon=True).start()

    def _converse(self, connection: socket.socket) -> None:
        with connection:
            request = json.loads(connection.makefile().readline())
            try:
                with self._lock:
                    answer = self._commands[request["do"]](request.get("target", ""))
            except ClusterError as error:
                answer = {"error": str(error)}
            except Exception:  # noqa: BLE001  # the asker gets it
                answer = {"error": traceback.format_exc()}
            connection.sendall(json.dumps(answer).encode() + b"\n")

    def _status(self, _: str) -> Answer:
        components = {name: component.state() for name, component in self._cluster.components.items()}
        return {"components": components, "off": sorted(self._cluster.powered_off), "cut": sorted(self._cuts)}

    def _is_node(self, target: str) -> bool:
        return target in {node.name for node in self._cluster.nodes}

    def _kill(self, target: str) -> Answer:
        if self._is_node(target):
            self._forget_cuts(target)
            self._cluster.power_off(target)
        else:
            self._cluster.component(target).signal(signal.SIGKILL)
        return {}

    def _signal(self, target: str, number: signal.Signals) -> Answer:
        if self._is_node(target):
            cgroups.signal_node(self._options.name, target, number)
        else:
            self._cluster.component(target).signal(number)
        return {}

    def _start(self, target: str) -> Answer:
        if self._is_node(target):
            self._cluster.power_on(target)
        else:
            self._cluster.start(target)
        return {}

    def _cut(self, target: str) -> Answer:
        if target in self._cuts:
            raise ClusterError(f"{target} is cut off already")
        enter, rules = self._way_to(target)
        cuts.drop(enter, rules, cut=True)
        if self._is_node(target):
            network.set_link(self._cluster.node(target).plan, up=False)
        self._cuts[target] = (enter, rules)
        return {}

    def _forget_cuts(self, node: str) -> None:
        """A node that is powered off loses its link and its rules, and gets new ones without any cut."""
        gone = {target for target, (enter, _) in self._cuts.items() if enter == entering(self._cluster.paths, node)}
        for target in gone | {node}:
            self._cuts.pop(target, None)

    def _heal(self, target: str) -> Answer:
        enter, rules = self._cuts.pop(target, ([], []))
        if self._is_node(target):
            network.set_link(self._cluster.node(target).plan, up=True)
        elif rules:
            cuts.drop(enter, rules, cut=False)
        return {}

    def _way_to(self, target: str) -> tuple[list[str], list[cuts.Rule]]:
        """How to enter the network in which a target is cut off, and the rules that do it; a node loses its link."""
        if self._is_node(target):
            return [], []
        if target.startswith("pod/"):
            _, namespace, name = target.split("/")[:3]
            node, address = cuts.find_pod(self._cluster.admin(), namespace, name)
            return entering(self._cluster.paths, node), cuts.pod_rules(address)
        node, _, name = self._cluster.component(target).program.name.rpartition("/")
        return entering(self._cluster.paths, node) if node else [], cuts.component_rules(name)

    def _kwok(self, _: str) -> Answer:
        self._cluster.start_kwok()
        return {}

    def _down(self, _: str) -> Answer:
        self._ended.set()
        return {}
