"""Sleep as pure decisions, and on whole servers: what clients, probes, metrics and the admin port see of it."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.runtime.supervisor.test_many_models import ask, start, state, stream, wait_phase
from tests.support.running_server import RunningServer, running_server
from tests.support.waiting import wait_for
from thranite.errors import ExitCode, Rejected
from thranite.ipc.control import ModelPhase, Sleep, Slept
from thranite.supervisor.sleep import Sleeper, SleepStatus

GIB = 1 << 30


def test_falling_asleep_cuts_off_once_at_the_deadline() -> None:
    sleeper = Sleeper()
    assert sleeper.advance(0.0) == ([], False)
    sleeper.sleep(0.0, 10.0)
    assert sleeper.advance(0.0) == ([Sleep(True)], False)
    sleeper.sleep(1.0, 4.0)  # the earlier deadline counts
    sleeper.sleep(1.0, 60.0)
    assert [sleeper.advance(now) for now in (4.9, 5.0, 6.0)] == [([], False), ([], True), ([], False)]
    sleeper.take(Slept(True, 0.5, GIB))
    assert (sleeper.status.phase, sleeper.status.freed_bytes) == (ModelPhase.ASLEEP, GIB)
    sleeper.sleep(7.0, 1.0)
    assert sleeper.advance(99.0) == ([], False)
    assert sleeper.status.settled


def test_waking_takes_its_time_and_is_not_disturbed() -> None:
    sleeper = Sleeper()
    sleeper.wake()
    assert sleeper.awake
    sleeper.sleep(0.0, 1.0)
    sleeper.advance(0.0)
    sleeper.take(Slept(True, 0.5, GIB))
    sleeper.wake()
    assert sleeper.advance(1.0) == ([Sleep(False)], False)
    assert not sleeper.status.settled
    with pytest.raises(Rejected, match="waking"):
        sleeper.sleep(1.0, 1.0)
    sleeper.take(Slept(False, 2.5))
    assert sleeper.awake
    assert (sleeper.status.wake_seconds, sleeper.status.freed_bytes) == (2.5, GIB)
    sleeper.sleep(9.0, 5.0)  # anew, with a deadline of its own
    assert sleeper.advance(9.0) == ([Sleep(True)], False)


def test_one_that_is_woken_before_it_sleeps() -> None:
    """The engine may fall asleep before it hears of the change of mind, or not at all."""
    for falls in (True, False):
        sleeper = Sleeper()
        sleeper.sleep(0.0, 60.0)
        sleeper.advance(0.0)
        sleeper.wake()
        assert sleeper.advance(0.1) == ([Sleep(False)], False)
        if falls:
            sleeper.take(Slept(True, 0.5, GIB))
            assert sleeper.status.phase is ModelPhase.WAKING
            assert sleeper.advance(0.2) == ([], False)
        sleeper.take(Slept(False, 0.0))
        assert sleeper.awake


def test_one_that_is_woken_before_its_engine_hears_of_sleep_is_awake() -> None:
    sleeper = Sleeper()
    for now in (0.0, 10.0):
        sleeper.sleep(now, 60.0)
        sleeper.wake()
        assert sleeper.awake
        assert sleeper.status.settled
        assert sleeper.advance(now) == ([], False)
        sleeper.sleep(now, 5.0)  # and sleeps when asked again
        assert sleeper.advance(now) == ([Sleep(True)], False)
        sleeper.take(Slept(True, 0.5, GIB))
        sleeper.wake()
        sleeper.advance(now)
        sleeper.take(Slept(False, 0.5))


def test_one_that_cannot_wake_sleeps_on_and_may_try_again() -> None:
    sleeper = Sleeper()
    sleeper.sleep(0.0, 1.0)
    sleeper.advance(0.0)
    sleeper.take(Slept(True, 0.5, GIB))
    for _ in range(2):
        sleeper.wake()
        assert sleeper.advance(1.0) == ([Sleep(False)], False)
        sleeper.take(Slept(True, 0.0, error="no room"))
        assert (sleeper.status.phase, sleeper.status.error) == (ModelPhase.ASLEEP, "no room")
        assert sleeper.status.freed_bytes == GIB
        assert sleeper.advance(1.1) == ([], False)


def gauge(server: RunningServer, model: str) -> float:
    return server.metric(f'thranite_sleeping{{model_name="{model}"}}')


def test_sleep_of_one_that_could_not_wake_is_what_it_does() -> None:
    sleeper = Sleeper()
    sleeper.sleep(0.0, 0.0)
    sleeper.advance(0.0)
    sleeper.take(Slept(True, 1.0, 100))
    sleeper.wake()
    sleeper.advance(0.0)
    sleeper.take(Slept(True, 0.0, 0, "the device lacks 3 GiB"))
    assert sleeper.status.error == "the device lacks 3 GiB"
    sleeper.sleep(1.0, 0.0)
    assert sleeper.status == SleepStatus(ModelPhase.ASLEEP, freed_bytes=100, sleep_seconds=1.0)


def test_one_that_loads_does_not_sleep(tmp_path: Path) -> None:
    with running_server(tmp_path, "slow-load") as server:
        assert server.admin.post("/sleep").status_code == 409


def test_a_server_asleep(tmp_path: Path) -> None:
    with running_server(tmp_path, server_processes=2) as server:
        server.wait_ready()
        assert server.admin.get("/is_sleeping").json()["is_sleeping"] is False
        asleep = server.admin.post("/sleep?level=1", timeout=20).json()
        assert (asleep["phase"], asleep["freed_bytes"]) == ("asleep", GIB)
        assert server.admin.get("/is_sleeping").json()["is_sleeping"] is True
        assert [server.probe(path) for path in ("/startupz", "/readyz", "/livez")] == [200, 503, 200]
        assert server.admin.get("/readyz").text == "the model is asleep\n"
        for _ in range(4):
            refused = ask(server, "tiny")
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "asleep")
            assert "retry-after" in refused.headers
        assert gauge(server, "tiny") == 1
        assert server.metric('vllm:engine_sleep_state{engine="0",model_name="tiny",sleep_state="awake"}') == 0
        assert server.metric('thranite_requests_rejected_total{model_name="tiny",reason="asleep"}') == 4
        status = server.api.get("/v1/models/tiny").json()["status"]
        assert status["phase"] == "asleep"
        assert server.api.get("/health").status_code == 200
        again = server.admin.post("/sleep").json()
        assert (again["phase"], again["freed_bytes"]) == ("asleep", GIB)
        awake = server.admin.post("/wake_up", timeout=20).json()
        assert (awake["phase"], awake["wake_seconds"] >= 0) == ("awake", True)
        assert server.probe("/readyz") == 200
        assert [ask(server, "tiny").status_code for _ in range(4)] == [200] * 4
        assert gauge(server, "tiny") == 0
        assert server.admin.post("/wake_up").json()["phase"] == "awake"
        server.admin.post("/sleep", timeout=20)
        server.process.send_signal(signal.SIGTERM)  # also one that sleeps drains and ends
        assert server.exit_code() == ExitCode.OK


def test_streams_end_before_sleep_or_are_cut_off(tmp_path: Path) -> None:
    with running_server(tmp_path, add_model=["small=models/small"]) as server:
        server.wait_ready()
        wait_phase(server, "small", "ready")
        with ThreadPoolExecutor(4) as pool:
            ends = pool.submit(stream, server.api_url, "tiny", 100)  # two seconds
            wait_for(lambda: server.metric("thranite_requests_running") == 1, "it runs")
            assert server.admin.post("/sleep", timeout=20).json()["phase"] == "asleep"
            assert ends.result()[-1]["choices"][0]["finish_reason"] == "length"
            server.admin.post("/wake_up", timeout=20)
            [cut], [kept] = start(pool, server, "tiny"), start(pool, server, "small")
            body = {"deadline_seconds": 0.3, "model": "tiny"}
            assert server.admin.post("/sleep", json=body, timeout=20).json()["phase"] == "asleep"
            assert "put to sleep" in cut.result()[-1]["error"]["message"]
            assert not kept.done()
            assert ask(server, "small").status_code == 200
            slept = server.admin.post("/sleep?model=small&deadline_seconds=0.1", timeout=20)
            assert slept.json()["phase"] == "asleep"
            assert "put to sleep" in kept.result()[-1]["error"]["message"]
        assert (state(server, "tiny")["phase"], state(server, "small")["phase"]) == ("asleep", "asleep")
        assert server.admin.post("/wake_up", json={"model": "small"}, timeout=20).json()["phase"] == "awake"
        assert ask(server, "small").status_code == 200
        assert ask(server, "tiny").status_code == 503
        assert server.probe("/readyz") == 503
        _check_refusals(server)
        server.admin.post("/sleep", json={"model": "small"}, timeout=20)
        os.kill(server.pids_of("engine_process")[1], signal.SIGKILL)
        wait_phase(server, "small", "failed")
        assert server.admin.post("/wake_up", json={"model": "small"}).status_code == 409
        wait_phase(server, "small", "ready")  # a new engine is awake
        assert ask(server, "small").status_code == 200


def _check_refusals(server: RunningServer) -> None:
    def error(method: str, path: str, **options: Any) -> tuple[int, str | None]:
        answer: httpx.Response = server.admin.request(method, path, **options)
        return answer.status_code, answer.json()["error"]["param"]

    assert error("POST", "/sleep?level=2") == (400, "level")
    assert error("POST", "/sleep?mode=abort") == (400, "mode")
    assert error("POST", "/sleep", json={"deadline_seconds": "soon"}) == (400, "deadline_seconds")
    assert error("POST", "/sleep", json={"model": 3}) == (400, "model")
    assert error("POST", "/wake_up?tags=weights") == (400, "tags")
    assert error("GET", "/is_sleeping?model=none") == (404, "model")


def test_real_ranks_sleep_and_wake_to_the_same_tokens(tmp_path: Path) -> None:
    from tests.runtime.parallel.test_serve_ranks import engine

    body = {"model": "tiny", "prompt": [5, 6, 7, 8], "max_tokens": 24, "temperature": 0.0, "return_token_ids": True}

    def answer(server: RunningServer) -> list[int]:
        found = server.api.post("/v1/completions", json=body, timeout=60)
        assert found.status_code == 200, found.text
        ids: list[int] = found.json()["choices"][0]["token_ids"]
        return ids

    with running_server(tmp_path, "null", engine(tmp_path), served_model_name=["tiny"], stall_timeout=30.0) as server:
        wait_for(lambda: server.process.poll() is None and server.probe("/readyz") == 200, "ready", timeout=120)
        before = answer(server)
        assert len(before) == 24
        for _ in range(2):
            asleep = server.admin.post("/sleep", timeout=60).json()
            assert asleep["freed_bytes"] > 100_000
            refused = server.api.post("/v1/completions", json=body, timeout=60)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "asleep")
            assert "POST /wake_up" in refused.json()["error"]["message"]
            awake = server.admin.post("/wake_up", timeout=60).json()
            assert awake["phase"] == "awake"
            assert answer(server) == before
        server.admin.post("/sleep", timeout=60)
        server.process.send_signal(signal.SIGTERM)
        assert server.exit_code() == ExitCode.OK
