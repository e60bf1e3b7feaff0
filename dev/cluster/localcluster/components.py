"""The programs of a cluster as processes: start, signal, and tell what became of them."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .errors import ClusterError
from .namespaces import entering
from .paths import ClusterPaths

# Puts itself into the control groups named before `--`, then becomes the program.
ENTER_GROUPS = 'while [ "$1" != -- ]; do echo $$ > "$1/cgroup.procs" || exit 1; shift; done; shift; exec "$@"'


@dataclass(frozen=True)
class Program:
    """What to run and where; `node` is empty for the control plane."""

    name: str
    command: tuple[str, ...]
    node: str = ""
    groups: tuple[Path, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    descriptors: tuple[int, ...] = ()

    def arguments(self, paths: ClusterPaths) -> list[str]:
        command = list(self.command)
        if self.node:
            command = [*entering(paths, self.node), *command]
        if self.groups:
            command = ["sh", "-c", ENTER_GROUPS, "enter", *map(str, self.groups), "--", *command]
        return command


class Component:
    def __init__(self, program: Program, paths: ClusterPaths) -> None:
        self.program = program
        self._paths = paths
        self._log = paths.logs / f"{program.name.replace('/', '-')}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._paused = False

    @property
    def pid(self) -> int:
        if self._process is None:
            raise ClusterError(f"{self.program.name} was not started")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        if self.running:
            raise ClusterError(f"{self.program.name} is running already")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self.program.arguments(self._paths),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.program.environment},
                pass_fds=self.program.descriptors,
                start_new_session=True,
            )
        self._paused = False

    def signal(self, number: signal.Signals) -> None:
        if self._process is None or not self.running:
            raise ClusterError(f"{self.program.name} is not running")
        self._process.send_signal(number)
        if number in (signal.SIGSTOP, signal.SIGCONT):
            self._paused = number == signal.SIGSTOP
        if number == signal.SIGKILL:
            self._process.wait(timeout=20)

    def state(self) -> str:
        if self._process is None:
            return "not started"
        code = self._process.poll()
        if code is None:
            return "stopped" if self._paused else "running"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"

    def check(self) -> None:
        """Raises with the end of its log if it has ended."""
        if self._process is not None and not self.running:
            lines = self._log.read_text(errors="replace").splitlines()[-8:]
            raise ClusterError("\n".join([f"{self.program.name} {self.state()}:", *lines]))
