"""`serve` over real ranks: it answers, and a lost rank ends it in time, with the cause where people look for it."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.runtime.supervisor.test_serve import body
from tests.support.rank_models import OPTIONS, rank_model, rank_pids
from tests.support.running_server import RunningServer, running_server
from tests.support.waiting import wait_for
from thranite.errors import ExitCode

STALL_SECONDS = 3.0
SERVE: dict[str, Any] = {"stall_timeout": STALL_SECONDS, "served_model_name": ["tiny"]}


def engine(directory: Path) -> dict[str, Any]:
    return OPTIONS | {"device": "cpu", "model": rank_model(directory / "model"), "tensor_parallel_size": 2}


def strike(server: RunningServer, number: signal.Signals | None, within: float) -> list[str]:
    """Hit rank 1 in mid-generation. The error of each open request, all within so many seconds."""
    [rank] = rank_pids(server.engine_pid())
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(error_of_stream, server.api_url) for _ in range(3)]
        if number is not None:
            wait_for(lambda: server.metric("thranite_requests_running") == 3, "streams are running")
            os.kill(rank, number)
        began = time.monotonic()
        errors = [future.result() for future in futures]
    assert time.monotonic() - began < within
    wait_for(lambda: not Path(f"/proc/{rank}").exists(), "the rank has ended")
    return errors


def error_of_stream(url: str) -> str:
    """How a long stream fails: by its last event, or by its status if no event was sent yet."""
    response = httpx.post(f"{url}/v1/completions", json=body(400, stream=True), timeout=60.0)
    if response.status_code != 200:
        return str(response.json()["error"]["message"])
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: {")]
    return str(json.loads(events[-1])["error"]["message"])


@pytest.mark.parametrize(
    ("number", "code", "cause"),
    [
        (signal.SIGKILL, ExitCode.ENGINE_DIED, r"rank 1 \(pid \d+, cpu\) was killed by SIGKILL"),
        (None, ExitCode.ENGINE_DIED, r"rank 1 \(pid \d+, cpu\) failed: ValueError: this rank has had enough"),
        (
            signal.SIGSTOP,
            ExitCode.ENGINE_STALLED,
            r"the engine hangs: .*; rank 1 \(pid \d+, cpu\) gives no sign of life",
        ),
    ],
)
def test_a_lost_rank(number: signal.Signals | None, code: ExitCode, cause: str, tmp_path: Path) -> None:
    behaviour = "failing-rank" if number is None else "null"
    with running_server(tmp_path, behaviour, engine(tmp_path), **SERVE) as server:
        server.wait_ready()
        answer = server.api.post("/v1/completions", json=body(5)).json()
        assert answer["usage"]["completion_tokens"] == 5
        pid = server.engine_pid()
        within = 5.0 + (STALL_SECONDS if number is signal.SIGSTOP else 0.0)
        began = time.monotonic()
        errors = strike(server, number, within)
        assert server.exit_code() == code
        assert time.monotonic() - began < within + 3.0
        assert all(re.search(cause, error) for error in errors), errors
        assert re.search(cause, server.termination_log())
        assert re.search(cause, server.log())
        assert not Path(f"/proc/{pid}").exists()


def test_a_rank_that_cannot_load_is_the_startups_failure(tmp_path: Path) -> None:
    with running_server(tmp_path, "broken-rank", engine(tmp_path)) as server:
        assert server.exit_code() == ExitCode.FAILURE
        assert "rank 1" in server.termination_log()
        assert "failed in stage 'load weights': RuntimeError: the disk is on fire" in server.termination_log()


def test_ranks_end_with_a_drained_server(tmp_path: Path) -> None:
    with running_server(tmp_path, "null", engine(tmp_path), **SERVE) as server:
        server.wait_ready()
        [rank] = rank_pids(server.engine_pid())
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(server.api.post, "/v1/completions", json=body(100))
            wait_for(lambda: server.metric("thranite_requests_running") == 1, "the stream is running")
            server.process.send_signal(signal.SIGTERM)
            assert future.result().json()["usage"]["completion_tokens"] == 100
        assert server.exit_code() == ExitCode.OK
        assert server.termination_log() == ""
        assert not Path(f"/proc/{rank}").exists()
