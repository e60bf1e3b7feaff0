"""What the class of a key and the header of a deadline do to a request."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.live_server import MODEL, LiveServer, live_server
from thranite.server.keys import ApiKey, KeyClass

KEYS = tuple(ApiKey(str(name), name) for name in KeyClass)
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
PATHS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"model": MODEL, "prompt": "hi"},
    "/v1/chat/completions": CHAT,
    "/v1/responses": {"model": MODEL, "input": "hi"},
    "/v1/messages": {**CHAT, "max_tokens": 5},
    "/generate": {"prompt": "hi"},
}


def post(server: LiveServer, key: str, priority: int | None, path: str = "/v1/completions") -> Any:
    body = PATHS[path] if priority is None else {**PATHS[path], "priority": priority}
    return server.http.post(path, json=body, headers={"authorization": f"Bearer {key}"})


@pytest.mark.parametrize(
    ("key", "priority", "result"),
    [
        ("high", -5, -5),
        ("high", None, 0),
        ("standard", 3, 3),
        ("standard", 0, 0),
        ("standard", -1, None),
        ("batch", 7, 7),
        ("batch", None, 1),
        ("batch", 0, None),
    ],
)
def test_priority_is_honoured_where_the_key_s_class_allows_it(key: str, priority: int | None, result: int) -> None:
    with live_server(api_keys=KEYS) as server:
        answer = post(server, key, priority)
        if result is None:
            assert answer.status_code == 403
            assert answer.json()["error"]["code"] == "priority_not_allowed"
            assert answer.json()["error"]["param"] == "priority"
            assert server.engine.submitted == []
        else:
            assert answer.status_code == 200
            assert server.engine.submitted[0].priority == result


def test_without_keys_everybody_is_trusted() -> None:
    with live_server() as server:
        assert post(server, "any", -9).status_code == 200
        assert server.engine.submitted[0].priority == -9


@pytest.mark.parametrize("path", PATHS)
def test_class_and_deadline_reach_the_engine_from_every_endpoint(path: str) -> None:
    with live_server(api_keys=KEYS) as server:
        headers = {"authorization": "Bearer batch", "x-request-timeout": "2.5"}
        assert server.http.post(path, json=PATHS[path], headers=headers).status_code == 200
        (request,) = server.engine.submitted
        assert (request.priority, request.timeout_seconds) == (1, 2.5)


def test_the_earlier_deadline_counts() -> None:
    with live_server() as server:
        for field, header in ((1.0, "9"), (9.0, "1")):
            body = {**PATHS["/v1/completions"], "timeout": field}
            server.http.post("/v1/completions", json=body, headers={"x-request-timeout": header})
        assert [request.timeout_seconds for request in server.engine.submitted] == [1.0, 1.0]
        none = server.http.post("/v1/completions", json={**body, "timeout": 0}, headers={"x-request-timeout": "9"})
        assert (none.status_code, none.json()["error"]["param"]) == (400, "timeout")


@pytest.mark.parametrize("text", ["soon", "0", "-1", "inf", "nan"])
def test_a_deadline_that_is_none_is_refused_by_name(text: str) -> None:
    with live_server() as server:
        answer = server.http.post("/v1/completions", json=PATHS["/v1/completions"], headers={"X-Request-Timeout": text})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "x-request-timeout"
