"""A whole `serve` as a subprocess, for tests: its addresses, its processes, its end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

import thranite
from tests.support.processes import children_of
from tests.support.waiting import TIMEOUT, wait_for

ROOT = Path(__file__).parents[2]
ADDRESSES = re.compile(r"API at (\S+)/v1, admin port at (\S+)")


class RunningServer:
    def __init__(self, process: subprocess.Popen[bytes], log: Path, termination_log: Path) -> None:
        self.process, self._log, self._termination_log = process, log, termination_log
        found = wait_for(lambda: ADDRESSES.search(self.log()) or process.poll() is not None, "addresses in the log")
        assert not isinstance(found, bool), self.log()
        self.api, self.admin = httpx.Client(base_url=found[1]), httpx.Client(base_url=found[2])
        self.api_url, self.admin_url = str(found[1]), str(found[2])

    def log(self) -> str:
        return self._log.read_text()

    def termination_log(self) -> str:
        return self._termination_log.read_text()

    def probe(self, name: str) -> int:
        return self.admin.get(name).status_code

    def wait_ready(self) -> None:
        wait_for(self._ready, "ready")

    def _ready(self) -> bool:
        assert self.process.poll() is None, self.log()
        try:
            return self.probe("/readyz") == 200
        except httpx.TransportError:
            return False  # the next look tells whether the process has ended

    def pid_of(self, module: str) -> int:
        """The only child that runs `module`."""
        (pid,) = self.pids_of(module)
        return pid

    def pids_of(self, module: str) -> list[int]:
        """The children that run `module`, in the order of their start."""
        return children_of(self.process.pid, module)

    def engine_pid(self) -> int:
        return self.pid_of("engine_process")

    def server_pid(self) -> int:
        return self.pid_of("thranite.server.process")

    def server_pids(self) -> list[int]:
        return self.pids_of("thranite.server.process")

    def exit_code(self, timeout: float = TIMEOUT) -> int:
        return self.process.wait(timeout)

    def metric(self, sample: str) -> float:
        """The value of one sample of the admin port's metrics, as it stands in the text."""
        for line in self.admin.get("/metrics").text.splitlines():
            if line.startswith(sample):
                return float(line.rsplit(" ", 1)[1])
        raise AssertionError(f"no sample {sample}")


@contextmanager
def running_server(
    directory: Path, behaviour: str = "ok", engine: dict[str, Any] | None = None, **serve: Any
) -> Iterator[RunningServer]:
    """Start one with its files in `directory`; whatever is left of it at the end is killed."""
    directory.mkdir(parents=True, exist_ok=True)
    options = {
        "engine": {"model": "tiny", "device": "null", "skip_tokenizer_init": True} | (engine or {}),
        "serve": {
            "server_processes": 1,
            "drain_delay": 0.3,
            "drain_timeout": 10.0,
            "generation_config": "none",
            "termination_log_path": str(directory / "termination.log"),
            "runtime_dir": str(directory),
        }
        | serve,
    }
    paths = [str(ROOT), str(Path(thranite.__file__).parents[1]), str(ROOT / "kernels")]
    if "PYTHONPATH" in os.environ:  # where a GPU machine's packages may be
        paths.append(os.environ["PYTHONPATH"])
    with (directory / "stderr.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.serve_fake", behaviour, json.dumps(options)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            cwd=ROOT,
        )
    server = None
    try:
        server = RunningServer(process, directory / "stderr.log", directory / "termination.log")
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait(TIMEOUT)
        if server is not None:
            server.api.close()
            server.admin.close()
