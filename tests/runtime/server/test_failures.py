"""Refusals, engine failures, clients that go, keys, unknown pages."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from tests.support.fake_engine import TOKENIZER, FakeEngine, says
from tests.support.live_server import MODEL, LiveServer, live_server, serve
from thranite.engine.admission import QueueLimits
from thranite.errors import ConfigError, EngineDead, InvalidRequest, Rejected, ThraniteError
from thranite.request import FinishReason
from thranite.server.app import build_app
from thranite.server.keys import ApiKey, KeyClass, read_api_keys
from thranite.server.settings import ServerSettings

COMPLETION: dict[str, Any] = {"model": MODEL, "prompt": "hi"}
CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
PATHS = [("/v1/completions", COMPLETION), ("/v1/chat/completions", CHAT)]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 5 seconds"
        time.sleep(0.01)


@pytest.mark.parametrize(("path", "body"), PATHS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "headers"),
    [
        (Rejected("the queue is full", "queue_full", 2.5), 429, {"retry-after": "3"}),
        (Rejected("draining", "draining"), 503, {"retry-after": "1", "connection": "close"}),
        (EngineDead("killed"), 503, {}),
        (InvalidRequest("it can never fit", "prompt", "too_long"), 400, {}),
    ],
)
def test_refusals_are_answered_before_any_stream(
    path: str, body: dict[str, Any], stream: bool, error: ThraniteError, status: int, headers: dict[str, str]
) -> None:
    with live_server() as server:
        server.engine.refuse = error
        answer = server.http.post(path, json={**body, "stream": stream})
    assert answer.status_code == status
    assert str(error) in answer.json()["error"]["message"]
    assert {name: answer.headers.get(name) for name in headers} == headers


def test_the_openai_client_sees_its_own_exceptions() -> None:
    with live_server(api_keys=(ApiKey("secret"),)) as server:
        with pytest.raises(openai.AuthenticationError):
            server.openai.completions.create(**COMPLETION)
        known = server.openai.with_options(api_key="secret")
        with pytest.raises(openai.NotFoundError) as missing:
            known.completions.create(model="other", prompt="x")
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as bad:
            known.completions.create(**COMPLETION, temperature=-1)
        assert bad.value.param == "temperature"
        server.engine.refuse = Rejected("full", "queue_full")
        with pytest.raises(openai.RateLimitError):
            known.completions.create(**COMPLETION)


@pytest.mark.parametrize(
    ("finish", "status"), [(FinishReason.TIMEOUT, 504), (FinishReason.ABORT, 503), (FinishReason.ERROR, 400)]
)
@pytest.mark.parametrize(("path", "body"), PATHS)
def test_an_answer_the_engine_cuts_short_is_an_error(
    path: str, body: dict[str, Any], finish: FinishReason, status: int
) -> None:
    with live_server(FakeEngine(says("abc", finish=finish))) as server:
        whole = server.http.post(path, json=body)
        stream = server.http.post(path, json={**body, "stream": True})
    assert whole.status_code == status
    assert (whole.headers.get("x-should-retry") == "false") == (finish is FinishReason.TIMEOUT)
    assert stream.status_code == 200
    last = stream.text.removesuffix("\n\n").rsplit("\n\n", 1)[-1]
    assert last == "data: " + whole.text
    assert "[DONE]" not in stream.text


@pytest.mark.parametrize(("path", "body"), PATHS)
def test_an_answer_cut_short_is_an_error_also_if_it_comes_all_at_once(path: str, body: dict[str, Any]) -> None:
    """A process with much to do finds tokens and the end that was not theirs in one batch."""
    engine = FakeEngine(says("abc", finish=FinishReason.ABORT))
    engine.at_once = True
    with live_server(engine) as server:
        whole = server.http.post(path, json=body)
        stream = server.http.post(path, json={**body, "stream": True})
    assert whole.status_code == 503
    assert stream.text.removesuffix("\n\n").rsplit("\n\n", 1)[-1] == "data: " + whole.text
    assert "[DONE]" not in stream.text


def test_a_dead_engine_ends_every_open_stream_with_an_error() -> None:
    engine = FakeEngine()
    engine.die_after = 2
    with live_server(engine) as server:
        stream = iter(server.openai.chat.completions.create(**CHAT, stream=True))
        pieces = [next(stream).choices[0].delta.content for _ in range(3)]
        assert pieces == ["", "hello", " wor"]
        with pytest.raises(openai.APIError, match="killed by a test"):
            next(stream)
        assert server.http.post("/v1/completions", json=COMPLETION).status_code == 503
        several = server.http.post("/v1/completions", json={**COMPLETION, "prompt": ["a", "b"]})
        assert several.status_code == 503
        engine.dead = EngineDead("killed")
        assert server.http.get("/health").status_code == 503


@pytest.mark.parametrize(("path", "body"), [*PATHS, ("/v1/completions", {**COMPLETION, "prompt": ["a", "b", "c"]})])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_ends_its_requests(path: str, body: dict[str, Any], stream: bool) -> None:
    with live_server(FakeEngine(hold_after=1)) as server:
        _send_and_leave(server, path, {**body, "stream": stream})
        until(lambda: len(server.engine.aborted) == (3 if isinstance(body.get("prompt"), list) else 1))
        assert server.engine.aborted == [request.request_id for request in server.engine.submitted]


def test_a_client_that_goes_before_its_request_is_accepted() -> None:
    engine = FakeEngine()
    engine.hold_submit = True
    with live_server(engine) as server:
        _send_and_leave(server, "/v1/completions", COMPLETION)
        until(lambda: engine.aborted == [request.request_id for request in engine.submitted] != [])


def _send_and_leave(server: LiveServer, path: str, body: dict[str, Any]) -> None:
    """Send a request by hand, wait until the engine has all of it, and close the connection."""
    request = httpx.Request("POST", server.url + path, json=body)
    head = f"POST {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    prompts = body.get("prompt")
    with socket.create_connection((request.url.host, request.url.port or 80)) as connection:
        connection.sendall(head.encode() + b"\r\n" + request.content)
        until(lambda: len(server.engine.submitted) == (len(prompts) if isinstance(prompts, list) else 1))


def test_a_later_prompt_s_refusal_takes_the_earlier_ones_back() -> None:
    engine = FakeEngine(hold_after=0)
    with live_server(engine) as server:
        accepted = engine.submit

        async def submit_two(request: Any) -> Any:
            if request.request_id.endswith("-2"):
                raise Rejected("full", "queue_full")
            return await accepted(request)

        engine.submit = submit_two  # type: ignore[method-assign]
        answer = server.http.post("/v1/completions", json={**COMPLETION, "prompt": ["a", "b", "c", "d"]})
    assert answer.status_code == 429
    assert {request.request_id for request in engine.submitted} <= set(engine.aborted)


@pytest.mark.parametrize(("path", "field"), [("/v1/completions", "prompt"), ("/v1/embeddings", "input")])
def test_more_prompts_than_may_ever_wait_are_no_reason_to_come_back(path: str, field: str) -> None:
    engine = FakeEngine()
    engine.info = replace(engine.info, queue_limits=QueueLimits(requests=2, tokens=100))
    with live_server(engine) as server:
        answer = server.http.post(path, json={"model": MODEL, field: ["a", "b", "c"]})
    assert answer.status_code == 400
    assert "retry-after" not in answer.headers
    assert answer.json()["error"]["param"] == field
    assert "at most 2" in answer.json()["error"]["message"]
    assert engine.submitted == []


def test_prompts_of_one_request_wait_for_the_engine_together() -> None:
    engine = FakeEngine()
    accepted, all_sent = engine.submit, asyncio.Event()

    async def answer_once_all_are_sent(request: Any) -> Any:
        stream = await accepted(request)
        if len(engine.submitted) == 3:
            all_sent.set()
        await all_sent.wait()
        return stream

    engine.submit = answer_once_all_are_sent  # type: ignore[method-assign]
    with live_server(engine) as server:
        answer = server.http.post("/v1/completions", json={**COMPLETION, "prompt": ["a", "b", "c"]})
    assert [choice["text"] for choice in answer.json()["choices"]] == ["hello world"] * 3


def test_an_unforeseen_error_is_a_500_without_details(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: object) -> Any:
        raise RuntimeError("a secret detail")

    with live_server(FakeEngine(broken)) as server:
        answer = server.http.post("/v1/completions", json=COMPLETION)
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "a secret detail" in caplog.text


def test_keys_guard_every_page_but_health() -> None:
    async def page(_: Request) -> PlainTextResponse:
        return PlainTextResponse("metrics")

    settings = ServerSettings(served_model_names=(MODEL,), api_keys=(ApiKey("one"), ApiKey("two")))
    app = build_app(FakeEngine(), TOKENIZER, settings, extra_routes=[Route("/metrics", page)])
    with serve(app) as url, httpx.Client(base_url=url) as http:
        for path in ("/v1/models", "/metrics", "/unknown"):
            refused = http.get(path, headers={"authorization": "Bearer three"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
            assert http.get(path).status_code == 401
        for key in ("one", "two"):
            allowed = http.get("/metrics", headers={"authorization": f"bearer {key}"})
            assert (allowed.status_code, allowed.text) == (200, "metrics")
        assert http.get("/health").status_code == 200


def test_pages() -> None:
    with live_server(model_root="/models/tiny") as server:
        (card,) = server.openai.models.list().data
        assert (card.id, card.object, card.owned_by) == (MODEL, "model", "thranite")
        assert card.model_extra is not None
        assert card.model_extra.pop("status")["phase"] == "ready"
        assert card.model_extra == {"root": "/models/tiny", "parent": None, "max_model_len": 128}
        assert server.openai.models.retrieve(MODEL).created == card.created
        for method, path, status in (
            ("GET", "/v1/models/none/such", 404),
            ("GET", "/v1/nothing", 404),
            ("GET", "/v1/completions", 405),
            ("DELETE", "/v1/models", 405),
        ):
            answer = server.http.request(method, path)
            assert answer.status_code == status
            assert answer.json()["error"]["type"] == "invalid_request_error"
        assert server.http.get("/health").json() == {}


def test_request_ids() -> None:
    with live_server() as server:
        given = server.http.get("/health", headers={"x-request-id": "abc-1"})
        assert given.headers["x-request-id"] == "abc-1"
        for unfit in ({}, {"x-request-id": "spaces are unfit"}):
            made = server.http.post("/v1/completions", json=COMPLETION, headers=unfit)
            assert made.headers["x-request-id"].startswith("req_")


def test_large_bodies_are_refused_with_and_without_a_length() -> None:
    with live_server(max_body_bytes=1024) as server:
        body = b'{"model": "tiny", "prompt": "' + b"a" * 2000 + b'"}'
        for content in (body, iter([body[:900], body[900:]])):
            answer = server.http.post("/v1/completions", content=content)
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


def test_api_keys_come_from_a_file_and_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# team a\nkey-a\n\n key-b \n")
    assert [key.value for key in read_api_keys(str(file), " key-c ")] == ["key-c", "key-a", "key-b"]
    file.write_text("a high\nb\tbatch\nc standard\nd\n")
    classes = [KeyClass.HIGH, KeyClass.BATCH, KeyClass.STANDARD, KeyClass.STANDARD]
    assert [key.key_class for key in read_api_keys(str(file), None)] == classes
    for line in ("secret first", "secret high low"):
        file.write_text(f"a\n{line}\n")
        with pytest.raises(ConfigError, match="line 2") as refused:
            read_api_keys(str(file), None)
        assert "secret" not in str(refused.value)
    assert read_api_keys(None, "") == ()
    file.write_text("# nothing\n")
    for path, value in ((str(file), None), (str(tmp_path / "missing"), None), (None, "ключ")):
        with pytest.raises(ConfigError):
            read_api_keys(path, value)


@pytest.mark.parametrize(
    "wrong", [{"served_model_names": ()}, {"tokenizer_threads": 0}, {"max_body_bytes": 1}], ids=lambda item: str(item)
)
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ServerSettings(**{"served_model_names": (MODEL,), **wrong})
