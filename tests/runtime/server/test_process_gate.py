"""What a server process answers while there is no engine, and how it counts open requests."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tests.support.asgi_calls import AppCalls
from thranite.errors import EngineDead
from thranite.server.gate import Gate
from thranite.server.keys import ApiKey, KeyClass
from thranite.server.metrics_source import MetricsSource


def gate() -> tuple[Gate, list[int]]:
    counts: list[int] = []
    made = Gate(MetricsSource("m"), lambda: counts.append(made.open_requests))
    return made, counts


async def hello(request: Request) -> Response:
    return PlainTextResponse("hello")


async def fail(request: Request) -> Response:
    raise RuntimeError("a defect")


APP = Starlette(routes=[Route("/hello", hello), Route("/fail", fail)])


def test_loading() -> None:
    closed, _ = gate()
    answer = AppCalls(closed).post("/v1/completions", json={})
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "loading"
    assert int(answer.headers["retry-after"]) > 0
    assert AppCalls(closed).post("/v1/messages", json={}).json()["error"]["type"] == "overloaded_error"
    assert "thranite_requests_waiting" in AppCalls(closed).get("/metrics").text


def test_metrics_of_a_model_that_loads_need_a_key_as_later() -> None:
    closed = Gate(MetricsSource("m"), lambda: None, [ApiKey("sk-1", KeyClass.STANDARD)])
    calls = AppCalls(closed)
    assert calls.get("/metrics").status_code == 401
    assert "thranite_requests_waiting" in calls.get("/metrics", headers={"authorization": "Bearer sk-1"}).text
    assert calls.post("/v1/completions", json={}).json()["error"]["code"] == "loading"


def test_open_requests_are_counted_whatever_becomes_of_them() -> None:
    opened, counts = gate()
    opened.app = APP
    client = AppCalls(opened, raises=False)
    assert client.get("/hello").text == "hello"
    assert client.get("/fail").status_code == 500
    assert counts == [1, 0, 1, 0]


def test_draining_closes_connections() -> None:
    opened, _ = gate()
    opened.app = APP
    assert "connection" not in AppCalls(opened).get("/hello").headers
    opened.draining = True
    assert AppCalls(opened).get("/hello").headers["connection"] == "close"


def test_a_dead_engine() -> None:
    opened, _ = gate()
    opened.app = APP
    opened.dead = EngineDead("killed by SIGKILL")
    answer = AppCalls(opened).get("/hello")
    assert answer.status_code == 503
    assert "SIGKILL" in answer.json()["error"]["message"]
    assert answer.headers["connection"] == "close"
