"""The informer outlives kopf, whatever ends it."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import aiohttp
import kopf
import pytest

from tests.support.apiserver import ADMIN_TOKEN, ApiServer
from tests.support.kube import KubeApi
from tests.support.manifests import service
from thranite_operator import informer
from thranite_operator.informer import Informer, WatchLost, until_over

STATUS = {"kind": "Status", "code": 500, "reason": "InternalError", "message": "no store"}
ERROR = json.dumps({"type": "ERROR", "object": STATUS}).encode() + b"\n"


@pytest.fixture
def failing_watches(api_server: ApiServer) -> Iterator[str]:
    """The URL of an API server whose every watch ends with an error that kopf takes for fatal."""
    with api_server.api() as api, ThreadingHTTPServer(("127.0.0.1", 0), handler(api)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


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


def test_kopf_is_started_again_and_stops_when_told(
    failing_watches: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = kopfs_own()
    monkeypatch.setattr(informer, "FIRST_BACKOFF", 0.1)
    for name in ("kopf", "asyncio"):  # their records, which pytest keeps, would hold tracebacks, and they the sessions
        monkeypatch.setattr(logging.getLogger(name), "propagate", False)
        monkeypatch.setattr(logging.getLogger(name), "handlers", [logging.NullHandler()])
    watching = Informer(lambda _: None, lambda: kopf.ConnectionInfo(server=failing_watches), ())
    watching.start()
    deadline = time.monotonic() + 90
    while caplog.text.count("watching failed: ") < 2:
        assert time.monotonic() < deadline, caplog.text
        time.sleep(0.1)
    assert watching.alive
    watching.stop(timeout=20)
    assert not watching.alive
    deadline = time.monotonic() + 20
    while kopfs_own() - before:  # a later test would be blamed
        assert time.monotonic() < deadline
        gc.collect()
        time.sleep(0.1)


def kopfs_own() -> set[int]:
    """Sessions that are open and tasks that are not done, by address. Python 3.11 keeps some that are over: a frame of
    kopf's, cancelled on a busy machine, is then held by nothing that the collector sees."""
    things = gc.get_objects()
    sessions = {id(thing) for thing in things if issubclass(type(thing), aiohttp.ClientSession) and not thing.closed}
    return sessions | {id(thing) for thing in things if issubclass(type(thing), asyncio.Task) and not thing.done()}


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
