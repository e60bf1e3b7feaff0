"""Structured output over the wire: every spelling reaches the engine as a grammar that was proved to compile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from tests.support.fake_engine import TOKENIZER, FakeEngine, says
from tests.support.live_server import MODEL, LiveServer, live_server
from tests.support.tool_chats import HERMES
from thranite.request import FinishReason, Grammar

HELLO: Any = [{"role": "user", "content": "hello"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server() as running:
        yield running


@pytest.fixture(autouse=True)
def fresh_engine(server: LiveServer) -> None:
    server.engine.script = says('{"a": 3}')
    server.engine.submitted.clear()


def grammar_of(server: LiveServer) -> Grammar:
    grammar = server.engine.submitted[-1].grammar
    assert grammar is not None
    return grammar


def ask(server: LiveServer, **fields: Any) -> Grammar:
    for path, prompt in (("completions", {"prompt": "hi"}), ("chat/completions", {"messages": HELLO})):
        answer = server.http.post(f"/v1/{path}", json={"model": MODEL, **prompt, **fields})
        assert answer.status_code == 200, answer.text
    first, second = (request.grammar for request in server.engine.submitted[-2:])
    assert first == second
    return grammar_of(server)


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": SCHEMA}}},
        {"guided_json": SCHEMA},
        {"structured_outputs": {"json": SCHEMA}},
        {"guided_json": '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}'},
    ],
)
def test_the_spellings_of_a_schema(server: LiveServer, fields: dict[str, Any]) -> None:
    assert '"required":["a"]' in ask(server, **fields).source.replace(" ", "")


def test_the_other_kinds(server: LiveServer) -> None:
    json_object = ask(server, response_format={"type": "json_object"})
    assert json_object == ask(server, structured_outputs={"json_object": True})
    assert '"object"' in json_object.source
    assert "a+b" in ask(server, guided_regex="a+b").source
    assert ask(server, guided_regex="a+b") == ask(server, structured_outputs={"regex": "a+b"})
    assert ask(server, guided_choice=["x", "y"]) == ask(server, structured_outputs={"choice": ["x", "y"]})
    assert ask(server, guided_choice=["x", 'y"']).source == 'start: CHOICE\nCHOICE: "x" | "y\\""'
    assert ask(server, guided_grammar='root ::= "a"') == ask(server, structured_outputs={"grammar": 'root ::= "a"'})
    spaced, dense = (
        ask(server, structured_outputs={"json": SCHEMA, "disable_any_whitespace": dense}) for dense in (False, True)
    )
    assert spaced != dense
    assert "whitespace_flexible" in dense.source


def test_min_tokens_are_the_grammar_s_to_keep(server: LiveServer) -> None:
    assert ask(server, guided_regex="a*", min_tokens=5, max_tokens=9) == Grammar(grammar_of(server).source, 5)
    assert server.engine.submitted[-1].params.min_tokens == 0


def test_free_text_has_no_grammar(server: LiveServer) -> None:
    for fields in ({}, {"response_format": {"type": "text"}}, {"response_format": None, "guided_json": None}):
        body = {"model": MODEL, "messages": HELLO, **fields}
        assert server.http.post("/v1/chat/completions", json=body).status_code == 200
        assert server.engine.submitted[-1].grammar is None


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "integer", "multipleOf": 300_007}, "multipleOf"),
    ],
)
def test_a_schema_that_cannot_compile_says_why(server: LiveServer, schema: dict[str, Any], said: str) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    answer = server.http.post(
        "/v1/chat/completions", json={"model": MODEL, "messages": HELLO, "response_format": wanted}
    )
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, "response_format", "invalid_grammar")
    assert said in error["message"]
    assert not server.engine.submitted


FUNCTION = {"name": "f", "parameters": SCHEMA}
FORMAT = {"type": "json_schema", "name": "a", "schema": SCHEMA}


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/completions", {"prompt": "a", "guided_json": SCHEMA}, "guided_json"),
        ("/v1/chat/completions", {"messages": HELLO, "response_format": {"type": "json_object"}}, "response_format"),
        ("/generate", {"prompt": "a", "structured_outputs": {"regex": "a+"}}, "structured_outputs"),
        ("/v1/responses", {"input": "a", "text": {"format": FORMAT}}, "text.format"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_grammar_that_fails_under_way_is_named(
    server: LiveServer, path: str, body: dict[str, Any], field: str, stream: bool
) -> None:
    server.engine.script = says("abc", finish=FinishReason.ERROR)
    answer = server.http.post(path, json={"model": MODEL, **body, "stream": stream})
    assert answer.status_code == (200 if stream else 400)
    assert f'"param":"{field}"' in answer.text
    assert "generation_failed" in answer.text


def test_forced_tools_that_fail_under_way_are_named() -> None:
    engine = FakeEngine(says("abc", finish=FinishReason.ERROR), max_model_len=4096)
    tools = {"tools": [{"type": "function", "function": FUNCTION}], "tool_choice": "required"}
    with live_server(engine, TOKENIZER.with_chat_template(HERMES)) as server:
        answer = server.http.post("/v1/chat/completions", json={"model": MODEL, "messages": HELLO, **tools})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools")


def test_openai_s_parse_helper(server: LiveServer) -> None:
    class Answer(BaseModel):
        a: int

    answer = server.openai.chat.completions.parse(model=MODEL, messages=HELLO, response_format=Answer)
    assert answer.choices[0].message.parsed == Answer(a=3)
    assert '"a"' in grammar_of(server).source


def test_without_a_tokenizer_it_is_refused() -> None:
    with live_server(tokenizer=None) as bare:
        answer = bare.http.post("/v1/completions", json={"model": MODEL, "prompt": [1], "guided_regex": "a"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "guided_regex")
