"""`thranite serve` as a process tree that can be measured: CPU, memory, open files, metrics."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from thranite.bench.http_stream import Target

ADDRESSES = re.compile(r"API at http://([^:]+):(\d+)/v1, admin port at (\S+)")
START_SECONDS = 90.0
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


def process_tree(pid: int) -> list[int]:
    """The process and its descendants that live now."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found, new = [pid], [pid]
    while new:
        new = [child for parent in new for child in children.get(parent, [])]
        found += new
    return found


def cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time of the processes so far."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS_A_SECOND


def resident_bytes(pids: Sequence[int]) -> int:
    """Memory of the processes' own: pages shared with files are the machine's."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                total += int(line.split()[1]) * 1024
    return total


def open_files(pids: Sequence[int]) -> int:
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids)


class Server:
    """One running server, its model's name there, and the pids of all its processes."""

    def __init__(
        self, process: subprocess.Popen[bytes], model: str, log: Path, start_seconds: float = START_SECONDS
    ) -> None:
        self.process, self.model = process, model
        self._log, self._start_seconds = log, start_seconds
        found = self._wait_for_addresses()
        self.target = Target(found[1], int(found[2]))
        self.admin = found[3]

    def _wait_for_addresses(self) -> re.Match[str]:
        deadline = time.monotonic() + self._start_seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            if found := ADDRESSES.search(self._log.read_text()):
                return found
            time.sleep(0.05)
        raise RuntimeError(f"the server does not start:\n{self._log.read_text()}")

    @property
    def pids(self) -> list[int]:
        return process_tree(self.process.pid)

    def log(self) -> str:
        return self._log.read_text()

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.admin + path, timeout=30) as answer:
            return str(answer.read().decode())

    def wait_ready(self) -> None:
        deadline = time.monotonic() + self._start_seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                self.get("/readyz")
            except OSError:
                time.sleep(0.1)
            else:
                return
        raise RuntimeError(f"the server does not become ready:\n{self.log()}")

    def metric(self, name: str, **labels: str) -> float:
        """The value of one sample."""
        for line in self.get("/metrics").splitlines():
            if line.startswith(name + "{") and all(f'{key}="{value}"' in line for key, value in labels.items()):
                return float(line.rsplit(" ", 1)[1])
        raise KeyError(name)

    def stop(self) -> int:
        """Drain and end; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextmanager
def served(
    model: Path, name: str, directory: Path, options: Sequence[str], start_seconds: float = START_SECONDS
) -> Iterator[Server]:
    """`model`, served under `name` on ports of its own; ready. Killed at the end, unless it was stopped."""
    command = [sys.executable, "-m", "thranite", "serve", str(model), "--served-model-name", name]
    command += ["--host", "127.0.0.1", "--port", "0", "--admin-host", "127.0.0.1", "--admin-port", "0"]
    command += ["--generation-config", "none", "--drain-delay", "0", *options]
    path = directory / "server.log"
    with path.open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        server = Server(process, name, path, start_seconds)
        server.wait_ready()
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)
