"""`serve` as a real process tree over a fake engine: start, drain, and every way to die."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.fake_stepping_engine import BOOM, HANG, HUNGER
from tests.support.running_server import RunningServer, running_server
from tests.support.waiting import wait_for
from thranite.errors import ExitCode

TIMEOUT = 30.0


def body(max_tokens: int, first: int = 5, **extra: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": [first, 6, 7], "max_tokens": max_tokens, **extra}


def stream(url: str, max_tokens: int, first: int = 5) -> list[dict[str, Any]]:
    """The data events of one streamed completion, the last [DONE] left out; or the error that came in their place."""
    request = body(max_tokens, first, stream=True)
    with httpx.stream("POST", f"{url}/v1/completions", json=request, timeout=TIMEOUT) as response:
        if response.status_code != 200:
            return [json.loads(response.read())]
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


@contextmanager
def streams(server: RunningServer, count: int, max_tokens: int, first: int = 5) -> Iterator[list[Future[Any]]]:
    """`count` streamed completions under way."""
    running = server.metric("thranite_requests_running")
    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(stream, server.api_url, max_tokens, first) for _ in range(count)]
        if first == 5:
            wait_for(lambda: server.metric("thranite_requests_running") == running + count, "streams are running")
        yield futures


def test_serves_and_ends_on_sigterm(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        server.wait_ready()
        answer = server.api.post("/v1/completions", json=body(5)).json()
        assert answer["usage"]["completion_tokens"] == 5
        assert [server.probe(path) for path in ("/startupz", "/readyz", "/livez")] == [200, 200, 200]
        assert server.metric('thranite_requests_received_total{model_name="tiny"}') == 1
        public = server.api.get("/metrics").text
        assert 'thranite_requests_finished_total{model_name="tiny",reason="length"} 1.0' in public
        server.process.send_signal(signal.SIGTERM)
        assert server.exit_code() == ExitCode.OK
        assert server.termination_log() == ""
        assert list(tmp_path.glob("thranite-*")) == []


def test_sigterm_lets_streams_finish_and_refuses_new_requests(tmp_path: Path) -> None:
    with running_server(tmp_path, drain_delay=0.5) as server:
        server.wait_ready()
        with streams(server, 2, max_tokens=100) as futures:  # two seconds
            server.process.send_signal(signal.SIGTERM)
            wait_for(lambda: server.probe("/readyz") == 503, "not ready")
            admitted = server.api.post("/v1/completions", json=body(2))
            assert admitted.status_code == 200
            assert admitted.headers["connection"] == "close"
            refused = wait_for(
                lambda: (r := server.api.post("/v1/completions", json=body(2))).status_code == 503 and r, "refusing"
            )
            assert refused.headers["connection"] == "close"
            assert refused.json()["error"]["code"] == "draining"
            assert server.metric('thranite_requests_rejected_total{model_name="tiny",reason="draining"}') >= 1
            assert server.metric("thranite_draining") == 1
            assert [server.probe(path) for path in ("/startupz", "/livez")] == [200, 200]
            assert all(future.result()[-1]["choices"][0]["finish_reason"] == "length" for future in futures)
        assert server.exit_code() == ExitCode.OK


def test_deadline_and_second_signal_end_streams_with_a_final_event(tmp_path: Path) -> None:
    with running_server(tmp_path, drain_timeout=20.0) as server:
        server.wait_ready()
        with streams(server, 2, max_tokens=2000) as futures:
            server.process.send_signal(signal.SIGINT)
            wait_for(lambda: server.probe("/readyz") == 503, "not ready")
            server.process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            assert all("draining" in future.result()[-1]["error"]["message"] for future in futures)
            assert server.exit_code() == ExitCode.OK
            assert time.monotonic() - began < 5
    with running_server(tmp_path / "late", drain_timeout=0.5) as server:
        server.wait_ready()
        with streams(server, 1, max_tokens=2000) as futures:
            server.process.send_signal(signal.SIGTERM)
            assert "draining" in futures[0].result()[-1]["error"]["message"]
            assert server.exit_code() == ExitCode.OK


def test_killed_engine_tells_every_request_and_names_the_cause(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        server.wait_ready()
        with streams(server, 3, max_tokens=2000) as futures:
            began = time.monotonic()
            os.kill(server.engine_pid(), signal.SIGKILL)
            last = [future.result()[-1] for future in futures]
            assert time.monotonic() - began < 2
        assert all(event["error"]["code"] == "engine_dead" for event in last)
        assert server.exit_code() == ExitCode.ENGINE_DIED
        assert "stage: serve" in server.termination_log()
        assert "SIGKILL" in server.termination_log()


@pytest.mark.parametrize(("token", "cause"), [(BOOM, "RuntimeError: boom"), (HUNGER, "MemoryError")])
def test_engine_that_fails_in_a_step(tmp_path: Path, token: int, cause: str) -> None:
    with running_server(tmp_path) as server:
        server.wait_ready()
        with streams(server, 1, 100, token) as futures:
            error = futures[0].result()[-1]["error"]
            assert error["code"] == "engine_dead"
            assert cause in error["message"]
        began = time.monotonic()
        assert server.exit_code() == ExitCode.ENGINE_DIED
        assert time.monotonic() - began < 5
        assert cause in server.termination_log()


@pytest.mark.parametrize("way", ["sigstop", "hanging step", "sigstop while idle"])
def test_stalled_engine_is_ended(tmp_path: Path, way: str) -> None:
    with running_server(tmp_path, stall_timeout=1.5) as server:
        server.wait_ready()
        began = time.monotonic()
        if way == "sigstop while idle":
            os.kill(server.engine_pid(), signal.SIGSTOP)
        else:
            with streams(server, 1, 2000, HANG if way == "hanging step" else 5) as futures:
                if way == "sigstop":
                    os.kill(server.engine_pid(), signal.SIGSTOP)
                assert "hangs" in futures[0].result()[-1]["error"]["message"]
        assert server.exit_code() == ExitCode.ENGINE_STALLED
        assert time.monotonic() - began < 10
        assert "the engine hangs" in server.termination_log()


def test_children_end_with_a_killed_supervisor(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        server.wait_ready()
        children = [server.engine_pid(), server.server_pid()]
        server.process.kill()
        wait_for(lambda: not any(_alive(pid) for pid in children), "children end")


def _alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_drain_by_the_admin_port_and_back(tmp_path: Path) -> None:
    with running_server(tmp_path, drain_delay=0.0) as server:
        server.wait_ready()
        status = server.admin.post("/drain", json={"deadline_seconds": 30}).json()
        assert status["draining"]
        assert status["open_requests"] == 0
        again = server.admin.post("/drain", json={"deadline_seconds": 30}).json()
        assert again["deadline_seconds"] <= status["deadline_seconds"]
        wait_for(lambda: server.admin.get("/drain").json()["drained"], "drained")
        assert server.probe("/readyz") == 503
        assert server.api.post("/v1/completions", json=body(2)).status_code == 503
        assert not server.admin.delete("/drain").json()["draining"]
        wait_for(lambda: server.probe("/readyz") == 200, "ready again, once the server processes know")
        assert server.api.post("/v1/completions", json=body(2)).status_code == 200
        with streams(server, 1, max_tokens=2000) as futures:
            server.admin.post("/drain", json={"deadline_seconds": 0.2})
            assert "draining" in futures[0].result()[-1]["error"]["message"]
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        assert server.exit_code() == ExitCode.OK


def test_probes_metrics_and_signals_while_the_model_loads(tmp_path: Path) -> None:
    with running_server(tmp_path, "slow-load") as server:
        wait_for(lambda: "load weights" in server.admin.get("/startupz").text, "the stage is told")
        assert [server.probe(path) for path in ("/startupz", "/readyz", "/livez")] == [503, 503, 200]
        assert server.metric("thranite_requests_waiting") == 0
        assert server.admin.post("/drain").status_code == 409
        loading = wait_for(lambda: _get(server, "/v1/models"), "the API answers while the model loads")
        assert loading.status_code == 503
        assert "retry-after" in loading.headers
        assert "thranite_requests_running" in server.api.get("/metrics").text
        server.process.send_signal(signal.SIGTERM)
        assert server.exit_code(10) == ExitCode.OK


def _get(server: RunningServer, path: str) -> httpx.Response | None:
    try:
        return server.api.get(path)
    except httpx.TransportError:
        return None


@pytest.mark.parametrize(
    ("behaviour", "code", "text"),
    [
        ("does-not-fit", ExitCode.DOES_NOT_FIT, "hint: take a smaller model"),
        ("broken-load", ExitCode.FAILURE, "RuntimeError: the disk is on fire"),
    ],
)
def test_failed_startup(tmp_path: Path, behaviour: str, code: ExitCode, text: str) -> None:
    with running_server(tmp_path, behaviour) as server:
        assert server.exit_code() == code
        assert "stage: load weights" in server.termination_log()
        assert text in server.termination_log()


def test_a_failed_startup_waits_for_no_server_process(tmp_path: Path) -> None:
    """One that reads a large tokenizer hears nothing meanwhile."""
    with running_server(tmp_path, "slow-texts") as server:
        wait_for(lambda: "99 GB" in server.log(), "the engine fails")
        failed = time.monotonic()
        assert server.exit_code() == ExitCode.DOES_NOT_FIT
        assert time.monotonic() - failed < 3
        assert "does not end" not in server.log()


def test_missing_tokenizer_is_a_failed_startup(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    engine = {"model": str(tmp_path / "model"), "skip_tokenizer_init": False}
    with running_server(tmp_path, engine=engine) as server:
        assert server.exit_code() == ExitCode.UNSUPPORTED_MODEL
        assert "tokenizer.json" in server.termination_log()


def test_keys(tmp_path: Path) -> None:
    (tmp_path / "admin.key").write_text("root\n")
    with running_server(tmp_path, api_key="sesame", admin_key_file=str(tmp_path / "admin.key")) as server:
        server.wait_ready()
        assert server.admin.get("/metrics").status_code == 401
        assert server.admin.get("/metrics", headers={"authorization": "Bearer root"}).status_code == 200
        assert server.api.post("/v1/completions", json=body(1)).status_code == 401
        answer = server.api.post("/v1/completions", json=body(1), headers={"authorization": "Bearer sesame"})
        assert answer.status_code == 200
