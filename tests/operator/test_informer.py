"""The informer outlives kopf, whatever ends it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import kopf
import pytest
import yaml

from tests.operator.conftest import CRD, wait_served
from tests.support.apiserver import ADMIN_TOKEN, ApiServer, running_api_server
from tests.support.http_stub import http_stub
from tests.support.kube import KubeApi
from tests.support.manifests import service
from tests.support.waiting import wait_for
from thranite_operator import informer
from thranite_operator.informer import Informer, Sessions, WatchLost, end_others, until_over

STATUS = {"kind": "Status", "code": 500, "reason": "InternalError", "message": "no store"}
ERROR = json.dumps({"type": "ERROR", "object": STATUS}).encode() + b"\n"


@pytest.fixture
def failing_watches(api_server: ApiServer) -> Iterator[str]:
    """The URL of an API server whose every watch ends with an error that kopf takes for fatal."""
    with api_server.api() as api, http_stub(handler(api)) as port:
        yield f"http://127.0.0.1:{port}"


def handler(api: KubeApi) -> type[BaseHTTPRequestHandler]:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = ERROR if "watch=true" in self.path else api.client.get(self.path).content
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    return Answer


@pytest.mark.parametrize(("patience", "starts"), [(informer.END_SECONDS, 3), (0.01, 9)])
def test_kopf_is_started_again_and_stops_when_told(failing_watches: str, patience: float, starts: int) -> None:
    """Also where kopf has to be cancelled: a watch may lose that, and a session be left open."""
    command = [sys.executable, "-m", "tests.support.failing_informer", failing_watches, str(patience), str(starts)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert ran.returncode == 0, ran.stderr[-5000:]
    found = json.loads(ran.stdout)
    assert found["starts"] >= starts, ran.stderr[-5000:]
    assert found | {"starts": starts} == {"starts": starts, "lived": True, "stopped": True, "open": 0}


def test_hundreds_of_objects_are_seen_at_once(api_server: ApiServer, api: KubeApi, namespace: str) -> None:
    """kopf's workers stay for a while after the event that they were made for."""
    keys = {(namespace, f"x{number}") for number in range(300)}
    for _, name in keys:
        api.create(service(namespace, name, replicas=0))
    seen: set[tuple[str, str]] = set()
    info = kopf.ConnectionInfo(server=api_server.url, ca_path=str(api_server.ca), token=ADMIN_TOKEN)
    watching = Informer(seen.add, lambda: info, (namespace,))
    watching.start()
    try:
        deadline = time.monotonic() + 20
        while not keys <= seen:
            assert time.monotonic() < deadline, f"{len(seen)} of {len(keys)}"
            time.sleep(0.1)
    finally:
        watching.stop(timeout=20)
        for _, name in keys:  # a later test's operator would take them up
            api.delete("InferenceService", namespace, name)


def test_the_definition_may_come_late_and_go(tmp_path: Path) -> None:
    """kopf takes up what the API server has when it starts, and no more."""
    with running_api_server(tmp_path) as server, server.api() as api:
        seen: set[tuple[str, str]] = set()
        info = kopf.ConnectionInfo(server=server.url, ca_path=str(server.ca), token=ADMIN_TOKEN)
        watching = Informer(seen.add, lambda: info, ())
        watching.start()
        try:
            for key in (("default", "first"), ("default", "second")):
                time.sleep(1.0)
                assert not watching.watching
                api.create(yaml.safe_load(CRD.read_text()))
                wait_served(api)
                api.create(service(*key, replicas=0))
                wait_for(functools.partial(seen.__contains__, key), f"the {key[1]}")
                api.delete("CustomResourceDefinition", "", "inferenceservices.thranite.dev")
                wait_for(lambda: not watching.watching, "the end of watching")
        finally:
            watching.stop(timeout=20)


def test_a_kopf_that_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(informer, "END_SECONDS", 0.1)

    async def watch() -> None:
        raise RuntimeError("no store")

    async def kopf_like() -> None:
        watching = asyncio.create_task(watch(), name="watcher for pods.v1@None")
        await asyncio.Event().wait()
        await watching

    with pytest.raises(WatchLost, match="no store, and kopf did not end"):
        asyncio.run(until_over(kopf_like()))


def test_sessions_are_closed_that_kopf_leaves() -> None:
    until = datetime.now(UTC)
    info = kopf.ConnectionInfo(server="http://127.0.0.1:1", token="a", expiration=until)

    async def leave() -> list[informer.Login]:
        sessions = Sessions(lambda: info)
        logins = [await sessions.login(), await sessions.login()]
        assert not any(login.aiohttp_session.closed for login in logins)
        await sessions.close()
        return logins

    first, second = asyncio.run(leave())
    assert first.aiohttp_session.closed
    assert second.aiohttp_session.closed
    assert first.expiration == until
    assert first == second  # kopf compares it with those that were refused


def test_tasks_that_lose_a_cancellation_are_cancelled_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(informer, "CANCEL_AGAIN_SECONDS", 0.01)

    async def deaf(times: int) -> None:
        for _ in range(times):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    async def run(times: int, seconds: float) -> bool:
        task = asyncio.create_task(deaf(times), name="watcher for pods.v1@None")
        await asyncio.sleep(0)
        await end_others(seconds)
        return task.done()

    assert asyncio.run(run(3, 20.0))
    assert not caplog.text
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        assert not loop.run_until_complete(run(1_000_000, 0.05))
    assert "that do not end are left: watcher for pods.v1@None" in caplog.text
