"""Several models behind one port: real process trees, models that come, go, die and cannot be loaded."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.fake_stepping_engine import BOOM, HANG
from tests.support.running_server import RunningServer, running_server
from tests.support.waiting import wait_for
from thranite.errors import ExitCode

TIMEOUT = 30.0


def body(model: str, max_tokens: int, first: int = 5, **extra: Any) -> dict[str, Any]:
    return {"model": model, "prompt": [first, 6, 7], "max_tokens": max_tokens, **extra}


def ask(server: RunningServer, model: str) -> httpx.Response:
    """On a connection of its own, so that any server process may answer."""
    with httpx.Client(base_url=server.api_url, timeout=TIMEOUT) as client:
        return client.post("/v1/completions", json=body(model, 2))


def stream(url: str, model: str, max_tokens: int, first: int = 5) -> list[dict[str, Any]]:
    """A streamed completion's events, [DONE] left out."""
    request = body(model, max_tokens, first, stream=True)
    with httpx.stream("POST", f"{url}/v1/completions", json=request, timeout=TIMEOUT) as response:
        if response.status_code != 200:
            return [json.loads(response.read())]
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def running(server: RunningServer, model: str) -> float:
    return server.metric(f'thranite_requests_running{{model_name="{model}"}}')


def start(pool: ThreadPoolExecutor, server: RunningServer, model: str, count: int = 1) -> list[Future[Any]]:
    """Streams of 40 s that run by now."""
    futures = [pool.submit(stream, server.api_url, model, 2000) for _ in range(count)]
    wait_for(lambda: running(server, model) == count, f"streams of {model} run")
    return futures


def state(server: RunningServer, name: str) -> dict[str, Any]:
    states: dict[str, dict[str, Any]] = {s["name"]: s for s in server.admin.get("/models").json()["models"]}
    return states.get(name, {"phase": "gone"})


def wait_phase(server: RunningServer, name: str, phase: str) -> dict[str, Any]:
    """Real engines take their time on a machine with much else to do."""
    found: dict[str, Any] = wait_for(
        lambda: (s := state(server, name))["phase"] == phase and s, f"{name} is {phase}", timeout=120.0
    )
    return found


def test_a_model_of_the_command_line_and_one_that_comes_and_goes(tmp_path: Path) -> None:
    with running_server(tmp_path, add_model=["small=models/small"], server_processes=2) as server:
        server.wait_ready()
        wait_phase(server, "small", "ready")
        assert [ask(server, "small").status_code for _ in range(6)] == [200] * 6
        loading = server.admin.post("/models/load", json={"name": "late", "model": "models/late"})
        assert (loading.status_code, loading.json()["name"]) == (202, "late")
        again = server.admin.post("/models/load", json={"name": "late", "model": "other"})
        assert (again.status_code, "late" in again.json()["error"]["message"]) == (409, True)
        wait_phase(server, "late", "ready")
        assert [ask(server, "late").status_code for _ in range(6)] == [200] * 6
        assert ask(server, "tiny").status_code == 200
        listed = server.api.get("/v1/models").json()["data"]
        assert [card["id"] for card in listed] == ["tiny", "small", "late"]
        assert {card["status"]["phase"] for card in listed} == {"ready"}
        assert [card["root"] for card in listed] == ["tiny", "models/small", "models/late"]
        told = server.admin.get("/models").json()["models"]
        assert [model["root"] for model in told] == ["tiny", "models/small", "models/late"]
        _check_metrics(server)
        _check_unloading(server)
        assert len(server.pids_of("engine_process")) == 2
        server.process.send_signal(signal.SIGTERM)
        assert server.exit_code() == ExitCode.OK
        assert server.termination_log() == ""


def _check_metrics(server: RunningServer) -> None:
    """Each model's own, on both ports and from whichever server process answers."""
    for text in [server.admin.get("/metrics").text, *(_metrics(server) for _ in range(4))]:
        for name, count in (("tiny", 1), ("small", 6), ("late", 6)):
            assert f'thranite_requests_received_total{{model_name="{name}"}} {count}.0' in text
            assert f'vllm:num_requests_running{{engine="0",model_name="{name}"}} 0.0' in text
        assert text.count("# TYPE thranite_requests_waiting gauge") == 1


def _metrics(server: RunningServer) -> str:
    with httpx.Client(base_url=server.api_url) as client:
        return client.get("/metrics").text


def _check_unloading(server: RunningServer) -> None:
    """Streams get their final event, new requests a 404 with the list, and nothing of the model stays."""
    with ThreadPoolExecutor(4) as pool:
        cut, kept = start(pool, server, "late", 3), start(pool, server, "small")
        answer = server.admin.post("/models/unload", json={"name": "late", "deadline_seconds": 0.5})
        assert (answer.status_code, answer.json()["phase"]) == (202, "unloading")
        missing = wait_for(lambda: (r := ask(server, "late")).status_code == 404 and r, "new requests are refused")
        assert missing.json()["error"]["code"] == "model_not_found"
        assert "this server has `tiny`, `small`" in missing.json()["error"]["message"]
        assert all("unloaded" in future.result()[-1]["error"]["message"] for future in cut)
        wait_phase(server, "late", "gone")
        assert not kept[0].done()
        server.admin.post("/models/unload", json={"name": "small", "deadline_seconds": 0})
        assert "unloaded" in kept[0].result()[-1]["error"]["message"]
        wait_phase(server, "small", "gone")
    wait_for(lambda: len(server.pids_of("engine_process")) == 1, "their engines have ended")
    assert 'model_name="late"' not in server.admin.get("/metrics").text + _metrics(server)
    unknown = server.admin.post("/models/unload", json={"name": "late"})
    assert unknown.status_code == 404
    assert "this server has `tiny`" in unknown.json()["error"]["message"]
    assert server.admin.post("/models/unload", json={"name": "tiny"}).status_code == 409
    server.admin.post("/models/load", json={"name": "late", "model": "models/late"})
    wait_phase(server, "late", "ready")
    assert ask(server, "late").status_code == 200


def test_requests_that_run_may_end_before_their_model_is_unloaded(tmp_path: Path) -> None:
    with running_server(tmp_path, add_model=["small=models/small"]) as server:
        server.wait_ready()
        wait_phase(server, "small", "ready")
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(stream, server.api_url, "small", 100)  # two seconds
            wait_for(lambda: running(server, "small") == 1, "it runs")
            server.admin.post("/models/unload", json={"name": "small"})
            assert future.result()[-1]["choices"][0]["finish_reason"] == "length"
        wait_phase(server, "small", "gone")


@pytest.mark.parametrize("way", ["killed", "raises", "hangs"])
def test_the_death_of_an_added_engine_costs_its_requests_alone(tmp_path: Path, way: str) -> None:
    with running_server(tmp_path, add_model=["small=models/small"], server_processes=2, stall_timeout=2.0) as server:
        server.wait_ready()
        wait_phase(server, "small", "ready")
        first, second = server.pids_of("engine_process")
        with ThreadPoolExecutor(4) as pool:
            kept = pool.submit(stream, server.api_url, "tiny", 250)  # five seconds
            lost = start(pool, server, "small", 2)
            if way == "killed":
                os.kill(second, signal.SIGKILL)
            else:
                pool.submit(stream, server.api_url, "small", 5, BOOM if way == "raises" else HANG)
            ends = [future.result()[-1]["error"]["message"] for future in lost]
            failed = wait_phase(server, "small", "failed")
            assert failed["retry_seconds"] == 1.0
            for text in [failed["cause"], server.log()]:
                assert {"killed": "SIGKILL", "raises": "RuntimeError: boom", "hangs": "the engine hangs"}[way] in text
            assert all({"killed": "ended", "raises": "boom", "hangs": "hangs"}[way] in end for end in ends)
            refused = ask(server, "small")
            assert (refused.status_code, refused.json()["error"]["code"]) in ((503, "model_failed"), (503, "loading"))
            assert server.probe("/readyz") == server.probe("/livez") == 200
            wait_phase(server, "small", "ready")
            assert [ask(server, "small").status_code for _ in range(6)] == [200] * 6
            assert kept.result()[-1]["choices"][0]["finish_reason"] == "length"
        assert server.pids_of("engine_process")[0] == first
        os.kill(first, signal.SIGKILL)
        assert server.exit_code() == ExitCode.ENGINE_DIED
        assert "the engine process was killed by SIGKILL" in server.termination_log()


def test_a_model_that_cannot_be_loaded_says_why_and_is_tried_again(tmp_path: Path) -> None:
    with running_server(tmp_path, "null", {"model": _null_model(tmp_path / "first")}) as server:
        server.wait_ready()
        server.admin.post("/models/load", json={"name": "bad", "model": str(tmp_path / "none")})
        failed = wait_phase(server, "bad", "failed")
        assert "ModelNotFound" in failed["cause"]
        status = server.api.get("/v1/models/bad").json()["status"]
        assert "ModelNotFound" in status["cause"]
        refused = ask(server, "bad")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_failed")
        assert "ModelNotFound" in refused.json()["error"]["message"]
        assert server.probe("/readyz") == 200
        _null_model(tmp_path / "none")  # now it is there
        wait_phase(server, "bad", "ready")
        assert ask(server, "bad").status_code == 200


def _null_model(directory: Path) -> str:
    from tests.support.null_model import model_directory

    directory.mkdir(exist_ok=True)
    return model_directory(directory)


def test_a_missing_tokenizer_is_told_and_cured(tmp_path: Path) -> None:
    first = _null_model(tmp_path / "first")
    broken = Path(_null_model(tmp_path / "broken"))
    tokenizer = (broken / "tokenizer.json").read_bytes()
    (broken / "tokenizer.json").unlink()
    engine = {"model": first, "skip_tokenizer_init": False}
    with running_server(tmp_path, "ok", engine, add_model=[f"broken={broken}"], server_processes=2) as server:
        server.wait_ready()
        assert "tokenizer.json" in wait_phase(server, "broken", "failed")["cause"]
        (broken / "tokenizer.json").write_bytes(tokenizer)
        wait_phase(server, "broken", "ready")
        assert [ask(server, "broken").status_code for _ in range(4)] == [200] * 4


def test_progress_is_told_and_a_model_may_go_while_it_loads(tmp_path: Path) -> None:
    with running_server(tmp_path, "slow-load", add_model=["small=models/small", "third=models/third"]) as server:
        server.wait_ready()
        seen = wait_for(lambda: (s := _status(server, "small"))["progress"] and s, "progress is told")
        assert (seen["phase"], seen["stage"]) == ("loading", "load weights")
        assert _status(server, "third")["phase"] == "queued"
        refused = ask(server, "small")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "loading")
        assert int(refused.headers["retry-after"]) >= 1
        began = time.monotonic()
        server.admin.post("/models/unload", json={"name": "small"})
        wait_phase(server, "small", "gone")
        assert time.monotonic() - began < 5
        wait_phase(server, "third", "ready")
        assert ask(server, "third").status_code == 200


def _status(server: RunningServer, name: str) -> dict[str, Any]:
    status: dict[str, Any] = server.api.get(f"/v1/models/{name}").json()["status"]
    return status


def test_models_that_come_and_go_leave_nothing_behind(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        server.wait_ready()
        processes = [server.process.pid, server.server_pid()]
        left: list[list[int]] = []
        for _ in range(3):
            server.admin.post("/models/load", json={"name": "late", "model": "models/late"})
            wait_phase(server, "late", "ready")
            assert ask(server, "late").status_code == 200
            server.admin.post("/models/unload", json={"name": "late", "deadline_seconds": 0})
            wait_phase(server, "late", "gone")
            wait_for(lambda: len(server.pids_of("engine_process")) == 1, "its engine has ended")
            left.append([len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in processes])
        assert left[1] == left[2]


def test_a_server_process_that_is_replaced_answers_for_every_model(tmp_path: Path) -> None:
    with running_server(tmp_path, add_model=["small=models/small"]) as server:
        server.wait_ready()
        wait_phase(server, "small", "ready")
        os.kill(server.server_pid(), signal.SIGKILL)
        wait_for(lambda: server.probe("/readyz") == 503, "not ready without it")
        wait_for(lambda: server.probe("/readyz") == 200, "ready again")
        assert ask(server, "small").status_code == 200
        assert state(server, "small")["phase"] == "ready"


def test_a_drain_drains_all_models(tmp_path: Path) -> None:
    with running_server(tmp_path, add_model=["small=models/small"], drain_delay=0.2) as server:
        server.wait_ready()
        wait_phase(server, "small", "ready")
        with ThreadPoolExecutor(2) as pool:
            futures = [pool.submit(stream, server.api_url, model, 100) for model in ("tiny", "small")]
            wait_for(lambda: running(server, "tiny") == running(server, "small") == 1, "both run")
            server.process.send_signal(signal.SIGTERM)
            refused = wait_for(lambda: (r := ask(server, "small")).status_code == 503 and r, "refusing")
            assert refused.json()["error"]["code"] == "draining"
            late = server.admin.post("/models/load", json={"name": "late", "model": "models/late"})
            assert (late.status_code, "draining" in late.json()["error"]["message"]) == (409, True)
            assert all(future.result()[-1]["choices"][0]["finish_reason"] == "length" for future in futures)
        assert server.exit_code() == ExitCode.OK


def test_an_engine_that_cannot_be_started_during_a_drain_is_that_models_failure(tmp_path: Path) -> None:
    program, hold = tmp_path / "engine", tmp_path / "hold"
    command = f'exec {sys.executable} -m tests.support.fake_engine_process ok "$@"'
    program.write_text(f"#!/bin/sh\nwhile [ -e '{hold}' ]; do sleep 0.05; done\n{command}\n")
    program.chmod(0o755)
    with running_server(tmp_path, str(program)) as server:
        server.wait_ready()
        hold.touch()
        for name in ("small", "third"):
            server.admin.post("/models/load", json={"name": name, "model": f"models/{name}"})
        wait_phase(server, "small", "loading")
        server.admin.post("/drain", json={"deadline_seconds": 60})
        wait_for(lambda: server.admin.get("/drain").json()["drained"], "it drains")
        program.rename(tmp_path / "elsewhere")
        hold.unlink()
        assert "cannot be started" in wait_phase(server, "third", "failed")["cause"]
        wait_phase(server, "small", "ready")
        (tmp_path / "elsewhere").rename(program)
        wait_phase(server, "third", "ready")
        server.admin.delete("/drain")
        wait_for(lambda: ask(server, "third").status_code == 200, "it serves again")


@pytest.mark.parametrize(
    ("model", "text"),
    [("small", "write NAME=MODEL"), ("tiny=x", "is the first model"), ("s=x?colour=red", "'colour' is no option")],
)
def test_what_cannot_be_added_ends_the_start(tmp_path: Path, model: str, text: str) -> None:
    with running_server(tmp_path, add_model=[model]) as server:
        assert server.exit_code() == ExitCode.CONFIG
        assert text in server.termination_log()
