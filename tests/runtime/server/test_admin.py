"""The admin port's HTTP form. What it answers in each state of a server is tested with real ones."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.asgi_calls import AppCalls
from thranite.errors import Rejected
from thranite.server.admin import DrainStatus, Probe, build_admin_app
from thranite.server.metrics_source import MetricsSource


class Target:
    """Answers what the test says and notes what it is asked."""

    def __init__(self) -> None:
        self.started = self.ready = self.live = Probe(True, "fine")
        self.asked: list[Any] = []
        self.refusal: Rejected | None = None

    def startup_probe(self) -> Probe:
        return self.started

    def ready_probe(self) -> Probe:
        return self.ready

    def live_probe(self) -> Probe:
        return self.live

    def drain_status(self) -> DrainStatus:
        return DrainStatus(False)

    def start_drain(self, deadline_seconds: float | None) -> DrainStatus:
        self._note(deadline_seconds)
        return DrainStatus(True, open_requests=2, deadline_seconds=deadline_seconds)

    def stop_drain(self) -> DrainStatus:
        self._note("stop")
        return DrainStatus(False)

    def _note(self, what: Any) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.asked.append(what)


def client(target: Target, key: str | None = None) -> AppCalls:
    return AppCalls(build_admin_app(target, MetricsSource("m"), key))


@pytest.mark.parametrize(("path", "field"), [("/startupz", "started"), ("/readyz", "ready"), ("/livez", "live")])
def test_probes(path: str, field: str) -> None:
    target = Target()
    assert client(target).get(path).status_code == 200
    setattr(target, field, Probe(False, "the reason"))
    answer = client(target).get(path)
    assert (answer.status_code, answer.text) == (503, "the reason\n")


def test_drain() -> None:
    target = Target()
    port = client(target)
    started = port.post("/drain", json={"deadline_seconds": 30})
    assert started.json() == {"draining": True, "drained": False, "open_requests": 2, "deadline_seconds": 30.0}
    assert port.post("/drain").status_code == 200
    assert port.post("/drain", json={}).status_code == 200
    assert port.request("DELETE", "/drain").json()["draining"] is False
    assert target.asked == [30.0, None, None, "stop"]
    assert port.get("/drain").json()["draining"] is False
    target.refusal = Rejected("the server is terminating", "draining")
    refused = port.request("DELETE", "/drain")
    assert (refused.status_code, refused.json()["error"]["message"]) == (409, "the server is terminating")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        (b'{"deadline": 3}', "deadline"),
        (b'{"deadline_seconds": -1}', "deadline_seconds"),
        (b'{"deadline_seconds": true}', "deadline_seconds"),
        (b'{"deadline_seconds": "3"}', "deadline_seconds"),
        (b'{"deadline_seconds": Infinity}', None),
        (b'{"deadline_seconds": 1%s}' % (b"0" * 400), "deadline_seconds"),
        (b"[" * 4000, None),
        (b'{"\\ud800": 1}', None),
        (b"x" * 5000, None),
    ],
)
def test_malformed_drains_are_refused(body: bytes, param: str | None) -> None:
    target = Target()
    answer = client(target).post("/drain", content=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert target.asked == []


def test_metrics_filter() -> None:
    text = client(Target()).get("/metrics?name[]=thranite_draining&name[]=thranite_waiting_tokens").text
    names = {line.split("{")[0] for line in text.splitlines() if not line.startswith("#")}
    assert names == {"thranite_draining", "thranite_waiting_tokens"}


def test_the_key_guards_all_but_the_probes() -> None:
    port = client(Target(), key="root")
    assert [port.get(path).status_code for path in ("/startupz", "/readyz", "/livez")] == [200, 200, 200]
    for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": "root"}):
        assert port.get("/metrics", headers=header).status_code == 401
        assert port.post("/drain", headers=header).status_code == 401
    assert port.get("/metrics", headers={"authorization": "Bearer root"}).status_code == 200
