"""Bodies on port 8000 that are hostile: JSON bombs, values nested deeply, and more than the model takes."""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

import httpx
import pytest

from tests.runtime.server.test_http_guard import serving
from tests.support.fake_engine import INFO, FakeEngine
from tests.support.live_server import MODEL

DEEP = 100_000
BOMBS = {
    "deep lists": b'{"model": "tiny", "prompt": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep objects": b'{"model": "tiny", "prompt": "x", "guided_json": ' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}",
    "deep beyond the end": b"[" * DEEP,
    "a huge integer": b'{"model": "tiny", "prompt": "x", "seed": ' + b"9" * DEEP + b"}",
    "a huge exponent": b'{"model": "tiny", "prompt": "x", "temperature": 1e400}',
    "a huge integer in a schema": b'{"model": "tiny", "prompt": "x", "guided_json": {"a": ' + b"9" * DEEP + b"}}",
    "not a number": b'{"model": "tiny", "prompt": "x", "temperature": NaN}',
    "infinity": b'{"model": "tiny", "prompt": "x", "temperature": Infinity}',
    "invalid UTF-8": b'{"model": "tiny", "prompt": "\xff\xfe"}',
    "half a surrogate pair": b'{"model": "tiny", "prompt": "\\ud800", "prompt_": 1}',
    "a NUL": b'{"model": "tiny", "prompt": "x"}\x00',
    "cut short": b'{"model": "tiny", "prompt": "x',
    "two documents": b'{"model": "tiny", "prompt": "x"} {}',
    "no object": b"7",
    "nothing": b"",
}


@pytest.mark.parametrize("name", BOMBS)
def test_json_bombs_are_a_400(name: str) -> None:
    with serving() as url:
        answer = httpx.post(url + "/v1/completions", content=BOMBS[name])
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert len(answer.content) < 2000


def test_of_equal_keys_the_last_one_counts() -> None:
    engine = FakeEngine()
    with serving(engine) as url:
        body = b'{"model": "no", "model": "tiny", "prompt": "x", ' + b'"max_tokens": 9, ' * 5000 + b'"max_tokens": 2}'
        assert httpx.post(url + "/v1/completions", content=body).status_code == 200
    assert engine.submitted[0].params.max_tokens == 2


def nested(depth: int) -> Any:
    value: Any = {"type": "string"}
    for _ in range(depth):
        value = {"type": "object", "properties": {"a": value}}
    return value


@pytest.mark.parametrize("depth", [50, 300, 900, 5000])
def test_deep_values_within_fields_of_any_shape(depth: int) -> None:
    """Tools and template arguments reach jinja and the grammar compiler."""
    tool = {"type": "function", "function": {"name": "f", "parameters": nested(depth)}}
    user = [{"role": "user", "content": "x"}]
    for extra in (
        {"tools": [tool], "tool_choice": "required"},
        {"tools": [tool]},
        {"chat_template_kwargs": {"x": nested(depth)}},
        {"guided_json": nested(depth)},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": nested(depth)}}},
    ):
        text = _dumps({"model": MODEL, "messages": user, **extra})
        with serving(FakeEngine(max_model_len=10**6)) as url:
            answer = httpx.post(url + "/v1/chat/completions", content=text, timeout=30)
        assert answer.status_code in (200, 400), (depth, extra.keys(), answer.text)


def _dumps(value: Any) -> bytes:
    """Deeper than the interpreter's own limit allows: in a thread with room for it."""
    made: list[bytes] = []

    def dump() -> None:
        before = sys.getrecursionlimit()
        sys.setrecursionlimit(100_000)
        try:
            made.append(json.dumps(value).encode())
        finally:
            sys.setrecursionlimit(before)

    threading.stack_size(256 * 2**20)
    thread = threading.Thread(target=dump)
    thread.start()
    thread.join()
    threading.stack_size(0)
    return made[0]


def test_prompts_and_lengths_beyond_the_model_s() -> None:
    with serving() as url:
        for body in ({"prompt": [1] * INFO.max_model_len}, {"prompt": "x", "max_tokens": INFO.max_model_len}):
            error = httpx.post(url + "/v1/completions", json={"model": MODEL, **body}).json()["error"]
            assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")
            assert str(INFO.max_model_len) in error["message"]
