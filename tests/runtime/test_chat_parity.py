"""`LLM.chat` and /v1/chat/completions render the same prompt for the same messages and tools."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_engine import FakeEngine
from tests.support.live_server import MODEL, LiveServer, live_server
from tests.support.null_model import model_directory
from tests.support.tool_chats import THINKING, TOOLS
from thranite import LLM, SamplingParams, StructuredOutputsParams
from thranite.errors import InvalidRequest
from thranite.text.tokenizer import Tokenizer

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"place": "Paris"}'}}
PARTS = [{"type": "text", "text": "how warm"}, {"type": "text", "text": "is it?"}]
ASKED = {"role": "user", "content": PARTS}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
SUNNY = {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "sunny"}]}
STRICT: Any = [{**tool, "function": {**tool["function"], "strict": True}} for tool in TOOLS]


@contextmanager
def null_llm(directory: Path, template: str) -> Iterator[LLM]:
    (directory / "chat_template.jinja").write_text(template)
    llm = LLM(model=str(directory), device="null", max_model_len=2048)
    yield llm
    llm.close()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(model_directory(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def llm(directory: Path) -> Iterator[LLM]:
    with null_llm(directory, THINKING) as made:
        yield made


@pytest.fixture(scope="module")
def server(directory: Path, llm: LLM) -> Iterator[LiveServer]:
    with live_server(FakeEngine(max_model_len=2048), llm.get_tokenizer()) as running:
        yield running


def served(server: LiveServer, messages: Any, **fields: Any) -> list[int]:
    body = {"model": MODEL, "messages": messages, "max_tokens": 1, **fields}
    answer = server.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return list(server.engine.submitted[-1].prompt_token_ids)


def offline(llm: LLM, messages: Any, tools: Any = None, **params: Any) -> list[int]:
    [output] = llm.chat(messages, SamplingParams(max_tokens=1, **params), tools=tools)
    return output.prompt_token_ids


@pytest.mark.parametrize(
    ("messages", "tools"),
    [
        ([ASKED], None),
        ([{"role": "developer", "content": "be kind"}, ASKED, CALLED, SUNNY], TOOLS),
        ([ASKED], STRICT),
    ],
    ids=["parts", "calls", "strict"],
)
def test_prompts_are_equal(llm: LLM, server: LiveServer, messages: Any, tools: Any) -> None:
    assert offline(llm, messages, tools) == served(server, messages, **({"tools": tools} if tools else {}))


def test_structured_answers_are_not_thought_about(llm: LLM, server: LiveServer) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    expected = served(server, [ASKED], response_format=schema)
    assert offline(llm, [ASKED], structured_outputs=StructuredOutputsParams(json=SCHEMA)) == expected
    assert offline(llm, [ASKED]) != expected


def test_templates_see_equal_messages(directory: Path) -> None:
    """Whatever they write of them, down to the order of keys."""
    messages = [{"name": "ann", **ASKED}, {"tool_calls": [{"index": 0, **CALL}], "role": "assistant"}, SUNNY]
    with (
        null_llm(directory, "{{ messages | tojson }}") as llm,
        live_server(FakeEngine(max_model_len=2048), Tokenizer.load(directory)) as server,
    ):
        assert offline(llm, messages) == served(server, messages)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"role": "user", "content": [{"type": "image_url"}]}, "content[0]"),
        ({"role": "user", "content": 3}, "content"),
        ({"role": "user"}, "content"),
        ({"content": "a"}, "role"),
        ({"role": "tool", "content": "a"}, "tool_call_id"),
        ({"role": "assistant", "tool_calls": ["weather"]}, "tool_calls[0].function"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
            "tool_calls[0].function.arguments",
        ),
    ],
)
def test_what_a_message_lacks_is_named(llm: LLM, message: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        llm.chat([message])
    assert error.value.param == f"messages[0].{field}"


def test_a_tool_without_function_is_named(llm: LLM) -> None:
    with pytest.raises(InvalidRequest) as error:
        llm.chat([ASKED], tools=[TOOLS[0], {"name": "f"}])
    assert error.value.param == "tools[1].function"
