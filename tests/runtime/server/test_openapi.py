"""GET /openapi.json is true: routes, bodies and answers are as it says, and nothing it allows fails the server."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from schemathesis.core import NotSet
from starlette.routing import Route, WebSocketRoute

from tests.runtime.server import test_bad_requests as bad
from tests.support.asgi_calls import AppCalls
from tests.support.fake_engine import TOKENIZER, FakeEngine, says
from tests.support.live_server import MODEL
from tests.support.tool_chats import HERMES, TOOLS
from thranite.server.app import build_app
from thranite.server.keys import ApiKey
from thranite.server.metrics_source import MetricsSource
from thranite.server.settings import ServerSettings

CASES = int(os.environ.get("THRANITE_FUZZ_CASES", "25"))  # for each operation; `make fuzz` tries more
SETTINGS = ServerSettings(served_model_names=(MODEL,))
APP = build_app(
    FakeEngine(says("<tool_call>{}", "hello world"), max_model_len=4096),
    TOKENIZER.with_chat_template(HERMES),
    SETTINGS,
    [Route("/metrics", MetricsSource(MODEL).endpoint, methods=["GET"])],
)
CALLS = AppCalls(APP)
DOCUMENT: dict[str, Any] = CALLS.get("/openapi.json").json()
USER = [{"role": "user", "content": "hi"}]
GOOD: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"model": MODEL, "messages": USER, "tools": TOOLS, "n": 2, "logprobs": True}),
    ("/v1/completions", {"model": MODEL, "prompt": ["a", "b"], "logprobs": 1, "echo": True}),
    ("/v1/responses", {"model": MODEL, "input": "hi", "text": {"format": {"type": "json_object"}}}),
    ("/v1/messages", {"model": MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": "a"}]}),
    ("/v1/messages/count_tokens", {"model": MODEL, "messages": [{"role": "user", "content": "a"}]}),
    ("/generate", {"prompt": "a", "guided_choice": ["x"]}),
    ("/tokenize", {"prompt": "a", "return_token_strs": True}),
    ("/detokenize", {"tokens": [1, 2]}),
]


def validator(schema: dict[str, Any]) -> Any:
    return jsonschema_rs.validator_for({**schema, "components": DOCUMENT["components"]})


def body_schema(path: str) -> dict[str, Any]:
    schema: dict[str, Any] = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return schema


def answer_schema(path: str, method: str = "post", status: str = "200") -> dict[str, Any]:
    schema: dict[str, Any] = DOCUMENT["paths"][path][method]["responses"][status]["content"]["application/json"][
        "schema"
    ]
    return schema


def test_every_route_is_described_and_no_other() -> None:
    routes = {(re.sub(r":\w+\}", "}", route.path), method.lower())
              for route in APP.routes if isinstance(route, Route)
              for method in (route.methods or {"POST"}) if method != "HEAD"}  # fmt: skip
    assert routes == {(path, method) for path, operations in DOCUMENT["paths"].items() for method in operations}
    assert [route.path for route in APP.routes if isinstance(route, WebSocketRoute)] == ["/ws/generate"]


def test_every_reference_leads_somewhere() -> None:
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(DOCUMENT)))
    assert names <= DOCUMENT["components"]["schemas"].keys()


@pytest.mark.parametrize(("path", "body"), GOOD, ids=lambda value: str(value)[:30])
def test_bodies_and_answers_are_as_described(path: str, body: dict[str, Any]) -> None:
    assert [error.message for error in validator(body_schema(path)).iter_errors(body)] == []
    answer = CALLS.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert [error.message for error in validator(answer_schema(path)).iter_errors(answer.json())] == []
    unknown = {**body, "no_such_field": 1}
    assert not validator(body_schema(path)).is_valid(unknown)
    refused = CALLS.post(path, json=unknown)
    assert refused.status_code == 400
    assert validator(answer_schema(path, status="400")).is_valid(refused.json())


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/{model}", "/health"])
def test_pages_are_as_described(path: str) -> None:
    answer = CALLS.get(path.replace("{model}", MODEL))
    assert validator(answer_schema(path, "get")).is_valid(answer.json())


def test_events_of_a_stream_are_as_described() -> None:
    for path, body in GOOD[:2]:
        content = DOCUMENT["paths"][path]["post"]["responses"]["200"]["content"]
        check = validator(content["text/event-stream"]["schema"]["contentSchema"])
        options = {"n": 1, "stream": True, "echo": False} if "prompt" in body else {"n": 1, "stream": True}
        events = [line for line in CALLS.post(path, json={**body, **options}).text.split("\n\n") if line]
        assert events.pop() == "data: [DONE]"
        for item in events:
            assert [error.message for error in check.iter_errors(json.loads(item.removeprefix("data: ")))] == []


def test_fields_without_support_are_described_as_such() -> None:
    schema = DOCUMENT["components"]["schemas"]["ChatRequest"]["properties"]["audio"]
    assert schema["enum"] == [None]
    values = DOCUMENT["components"]["schemas"]["ChatRequest"]["properties"]["service_tier"]["enum"]
    assert values == [None, "auto", "default"]


def test_deadlines_are_described_where_they_are_kept() -> None:
    engine = FakeEngine(says("<tool_call>{}", "hello world"), max_model_len=4096)
    calls = AppCalls(build_app(engine, TOKENIZER.with_chat_template(HERMES), SETTINGS))
    for path, body in GOOD:
        engine.submitted.clear()
        assert calls.post(path, json=body, headers={"x-request-timeout": "7"}).status_code == 200
        kept = [request.timeout_seconds for request in engine.submitted]
        described = [item["name"] for item in DOCUMENT["paths"][path]["post"].get("parameters", ())]
        assert set(kept) == ({7.0} if described == ["X-Request-Timeout"] else set()), path
    assert DOCUMENT["paths"]["/v1/embeddings"]["post"]["parameters"][0]["in"] == "header"


def test_keys_are_described_where_they_are_needed() -> None:
    locked = build_app(FakeEngine(), TOKENIZER, ServerSettings(served_model_names=(MODEL,), api_keys=(ApiKey("k"),)))
    calls = AppCalls(locked)
    assert calls.get("/openapi.json").status_code == 401
    document = calls.get("/openapi.json", headers={"authorization": "Bearer k"}).json()
    assert document["security"] == [{"key": []}]
    assert "security" not in DOCUMENT


def test_the_bad_requests_of_the_table_of_types_are_not_allowed() -> None:
    """Where a type is wrong, the description says so too."""
    wrong = [fields for fields, _ in bad.BOTH if fields in ({"temperature": "hot"}, {"stop": 1}, {"model": 3})]
    assert len(wrong) == 3
    check = validator(body_schema("/v1/completions"))
    for fields in wrong:
        assert not check.is_valid({"model": MODEL, "prompt": "hi", **fields})


def nothing_that_is_allowed_fails(path: str) -> Any:
    """A test of one path: all that schemathesis makes of one function have the same id."""

    @schemathesis.openapi.from_dict(DOCUMENT).include(method="POST", path=path).parametrize()
    @hypothesis_settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
    def test(case: Any) -> None:
        body = b"" if isinstance(case.body, NotSet) else case.body
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = CALLS.post(case.path, content=content)
        assert answer.status_code < 500, (case.body, answer.text)

    return test


POSTED = [path for path, methods in DOCUMENT["paths"].items() if "post" in methods]
globals().update(
    {
        f"test_nothing_that_is_allowed_fails{path.replace('/', '_')}": nothing_that_is_allowed_fails(path)
        for path in POSTED
    }
)


def test_the_page() -> None:
    page = CALLS.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    outside = re.findall(r"(?:src|href)=\"(?!data:)[^\"]*\"|https?://", page.text)
    assert outside == [], "the page takes nothing from elsewhere"
    families = set(re.findall(r'name: "([^"]+)"', page.text))
    figures = CALLS.get("/metrics").text
    assert len(families) == 4
    for family in families:
        assert re.search(rf"^{re.escape(family)}[{{ ]", figures, re.MULTILINE), family


def test_the_compatibility_table_names_real_tests() -> None:
    root = Path(__file__).parents[3]
    text = (root / "docs" / "api.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.endswith(" Test |")]
    assert [line for line in rows if "::test_" not in line.split("|")[-2]] == []
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", text)
    assert len(named) > 40
    for file, name in set(named):
        found = [path.read_text() for path in (root / "tests").rglob(file)]
        assert any(re.search(rf"^def {name}\(", text, re.MULTILINE) for text in found), f"{file}::{name}"
