"""Several server processes over one engine: they share the port, and the death of one costs only its own requests."""

from __future__ import annotations

import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.support.running_server import RunningServer, running_server
from tests.support.waiting import wait_for
from thranite.errors import ConfigError, ExitCode
from thranite.supervisor.listeners import bind_shared

TIMEOUT = 30.0
STREAMS = 12


def stream(url: str, max_tokens: int) -> str:
    """How a streamed completion on a connection of its own ended."""
    request = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": max_tokens, "stream": True}
    try:
        with httpx.stream("POST", f"{url}/v1/completions", json=request, timeout=TIMEOUT) as response:
            lines = [line for line in response.iter_lines() if line]
    except httpx.TransportError:
        return "cut"
    return "done" if lines[-1] == "data: [DONE]" else lines[-1]


def ask(server: RunningServer) -> int:
    with httpx.Client(base_url=server.api_url, timeout=TIMEOUT) as client:
        return client.post("/v1/completions", json={"model": "tiny", "prompt": [5], "max_tokens": 2}).status_code


def connections(pid: int, port: int) -> int:
    """Established connections to `port` that the process holds."""
    inodes = {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()}
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(
        f"socket:[{line[9]}]" in inodes and line[3] == "01" and line[1].endswith(f":{port:04X}") for line in lines
    )


def test_the_death_of_one_costs_only_its_requests(tmp_path: Path) -> None:
    with running_server(tmp_path, server_processes=2) as server:
        server.wait_ready()
        victim, other = server.server_pids()
        port = int(server.api_url.rsplit(":", 1)[1])
        with ThreadPoolExecutor(STREAMS) as pool:
            futures = [pool.submit(stream, server.api_url, 150) for _ in range(STREAMS)]  # three seconds
            wait_for(lambda: server.metric("thranite_requests_running") == STREAMS, "streams are running")
            lost, kept = connections(victim, port), connections(other, port)
            assert lost + kept == STREAMS
            os.kill(victim, signal.SIGKILL)
            wait_for(lambda: server.metric("thranite_requests_running") == kept, "what was lost is aborted")
            assert server.probe("/readyz") == server.probe("/livez") == 200
            ends = [future.result() for future in futures]
        assert sorted(ends) == ["cut"] * lost + ["done"] * kept
        assert server.metric('thranite_requests_finished_total{model_name="tiny",reason="abort"}') == lost
        wait_for(lambda: len(server.server_pids()) == 2, "the dead one is replaced")
        assert [ask(server) for _ in range(10)] == [200] * 10
        assert "was killed by SIGKILL" in server.log()
        server.process.send_signal(signal.SIGTERM)
        assert server.exit_code() == ExitCode.OK


def test_a_single_one_is_replaced_too_and_connections_wait_for_it(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        server.wait_ready()
        os.kill(server.server_pid(), signal.SIGKILL)
        wait_for(lambda: server.probe("/readyz") == 503, "not ready without it")
        statuses = wait_for(lambda: (status := ask(server)) == 200 and status, "the new one serves")
        assert statuses == 200
        assert server.probe("/readyz") == 200


def test_every_process_tells_the_engine_s_figures(tmp_path: Path) -> None:
    with running_server(tmp_path, server_processes=3) as server:
        server.wait_ready()
        for number in range(6):
            assert ask(server) == 200
            with httpx.Client(base_url=server.api_url) as client:
                assert (
                    f'thranite_requests_received_total{{model_name="tiny"}} {number + 1}.0'
                    in client.get("/metrics").text
                )
                assert client.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("number", "text", "code"),
    [(signal.SIGKILL, "engine_dead", ExitCode.ENGINE_DIED), (signal.SIGSTOP, "hangs", ExitCode.ENGINE_STALLED)],
)
def test_a_dead_or_hanging_engine_is_told_by_every_process(
    tmp_path: Path, number: signal.Signals, text: str, code: ExitCode
) -> None:
    with running_server(tmp_path, server_processes=2, stall_timeout=1.5) as server:
        server.wait_ready()
        with ThreadPoolExecutor(STREAMS) as pool:
            futures = [pool.submit(stream, server.api_url, 2000) for _ in range(STREAMS)]
            wait_for(lambda: server.metric("thranite_requests_running") == STREAMS, "streams are running")
            os.kill(server.engine_pid(), number)
            assert all(text in future.result() for future in futures)
        assert server.exit_code() == code


def test_a_port_is_shared_among_ourselves_only() -> None:
    listeners = bind_shared("127.0.0.1", 0, "port", 3)
    port = listeners[0].getsockname()[1]
    assert {listener.getsockname()[1] for listener in listeners} == {port}
    for count in (1, 2):
        with pytest.raises(ConfigError, match=f"--port {port}"):
            bind_shared("127.0.0.1", port, "port", count)
    for listener in listeners:
        listener.close()
    with socket.create_server(("127.0.0.1", port)):
        pass
