"""Tool calls and reasoning through the openai client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.support.fake_engine import TOKENIZER, FakeEngine, says
from tests.support.live_server import MODEL, LiveServer, live_server
from tests.support.tiny_tokenizers import CHATML
from tests.support.tool_chats import BEGUN, HERMES, TEMPLATES, THINKING, TOOLS
from thranite.errors import ConfigError
from thranite.request import FinishReason
from thranite.server.settings import ServerSettings

USER: Any = [{"role": "user", "content": "hi"}]
ARGUMENTS = '{"place": "Paris"}'
CALL = f'<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
SAID = {
    "hermes": f"I look.\n{CALL}\n{CALL}",
    "llama3_json": "; ".join([f'{{"name": "weather", "parameters": {ARGUMENTS}}}'] * 2),
    "mistral": "I look. [TOOL_CALLS]" + json.dumps([{"name": "weather", "arguments": {"place": "Paris"}}] * 2),
}


@contextmanager
def server_of(template: str, *texts: str, **settings: Any) -> Iterator[LiveServer]:
    engine = FakeEngine(says(*texts, tokens_per_delta=3), max_model_len=4096)
    with live_server(engine, TOKENIZER.with_chat_template(template), **settings) as server:
        yield server


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with server_of(HERMES, SAID["hermes"]) as running:
        yield running


def prompt_of(server: LiveServer) -> str:
    return TOKENIZER.decode(server.engine.submitted[-1].prompt_token_ids, skip_special_tokens=False)


def streamed(server: LiveServer, **fields: Any) -> tuple[str, str, list[tuple[str, str]], str | None]:
    """Content, reasoning, calls and finish reason of sample 0 of a stream."""
    content = reasoning = ""
    calls: list[list[str]] = []
    reason = None
    for chunk in server.openai.chat.completions.create(model=MODEL, messages=USER, stream=True, **fields):
        [choice] = chunk.choices
        content += choice.delta.content or ""
        reasoning += (choice.delta.model_extra or {}).get("reasoning_content") or ""
        for call in choice.delta.tool_calls or []:
            assert call.function is not None
            if call.index == len(calls):
                assert call.id
                assert call.type == "function"
                calls.append([call.function.name or "", ""])
            calls[call.index][1] += call.function.arguments or ""
        reason = choice.finish_reason or reason
    return content, reasoning, [(name, arguments) for name, arguments in calls], reason


def whole(server: LiveServer, **fields: Any) -> tuple[str, str, list[tuple[str, str]], str | None]:
    answer = server.openai.chat.completions.create(model=MODEL, messages=USER, **fields)
    [choice] = answer.choices
    calls = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or []]
    reasoning = (choice.message.model_extra or {}).get("reasoning_content") or ""
    return choice.message.content or "", reasoning, calls, choice.finish_reason


@pytest.mark.parametrize("notation", TEMPLATES)
def test_calls_in_every_notation(notation: str) -> None:
    with server_of(TEMPLATES[notation], SAID[notation]) as server:
        answer = whole(server, tools=TOOLS)
        assert answer == streamed(server, tools=TOOLS)
        content, _, calls, reason = answer
        assert content == ("" if notation == "llama3_json" else "I look.")
        assert [name for name, _ in calls] == ["weather", "weather"]
        assert [json.loads(arguments) for _, arguments in calls] == [{"place": "Paris"}] * 2
        assert reason == "tool_calls"
        one = whole(server, tools=TOOLS, parallel_tool_calls=False)
        assert len(one[2]) == 1
        assert one == streamed(server, tools=TOOLS, parallel_tool_calls=False)


def test_the_template_shows_the_tools(server: LiveServer) -> None:
    whole(server, tools=TOOLS)
    assert f"<tools>{json.dumps(TOOLS)}</tools>" in prompt_of(server)
    whole(server)
    assert "<tools>" not in prompt_of(server)


def test_without_tools_or_with_none_text_is_text(server: LiveServer) -> None:
    off: list[dict[str, Any]] = [{}, {"tools": TOOLS, "tool_choice": "none"}, {"tools": []}]
    for fields in off:
        assert whole(server, **fields) == (SAID["hermes"], "", [], "stop")
        assert "<tools>" not in prompt_of(server)


def test_a_forced_choice_is_a_grammar(server: LiveServer) -> None:
    whole(server, tools=TOOLS)
    assert server.engine.submitted[-1].grammar is None
    whole(server, tools=TOOLS, tool_choice="required")
    required = server.engine.submitted[-1].grammar
    named: Any = {"type": "function", "function": {"name": "clock"}}
    assert len(whole(server, tools=TOOLS, tool_choice=named)[2]) == 1
    clock = server.engine.submitted[-1].grammar
    assert required is not None
    assert clock is not None
    assert "weather" in required.source
    assert "clock" in required.source
    assert "weather" not in clock.source


def test_a_conversation_with_calls(server: LiveServer) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
    messages: Any = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    server.openai.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS)
    assert f'<tool_call>{{"name": "weather", "arguments": {ARGUMENTS}}}</tool_call>' in prompt_of(server)
    assert "<|im_start|>tool\nsunny<|im_end|>" in prompt_of(server)


def test_an_answer_cut_for_length_says_so() -> None:
    engine = FakeEngine(says(CALL[:-20], finish=FinishReason.LENGTH), max_model_len=4096)
    with live_server(engine, TOKENIZER.with_chat_template(HERMES)) as server:
        content, _, calls, reason = whole(server, tools=TOOLS)
        assert (content, calls, reason) == ("", [("weather", ARGUMENTS[: len(calls[0][1])])], "length")
        assert streamed(server, tools=TOOLS)[2:] == (calls, reason)


@pytest.mark.parametrize("text", ["so the answer (<", "Let x be the tag named `</"])
def test_reasoning_that_is_cut_where_it_may_have_ended(text: str) -> None:
    engine = FakeEngine(says(text, tokens_per_delta=100, finish=FinishReason.LENGTH), max_model_len=4096)
    with live_server(engine, TOKENIZER.with_chat_template(BEGUN)) as server:
        assert streamed(server) == whole(server) == ("", text, [], "length")


def test_reasoning_is_split_from_content() -> None:
    with server_of(THINKING, "<think>\nhm\n</think>\n\nYes. " + CALL) as server:
        assert whole(server, tools=TOOLS) == ("Yes.", "hm", [("weather", ARGUMENTS)], "tool_calls")
        assert streamed(server, tools=TOOLS) == whole(server, tools=TOOLS)
        assert streamed(server) == whole(server) == ("Yes. " + CALL, "hm", [], "stop")
    with server_of(BEGUN, "hm</think>Yes") as server:
        assert streamed(server) == whole(server) == ("Yes", "hm", [], "stop")
        assert prompt_of(server).endswith("<think>\n")
    with server_of(BEGUN, "hm</think>Yes", reasoning_parser="none") as server:
        assert whole(server) == ("hm</think>Yes", "", [], "stop")
    with server_of(CHATML, "<think>hm</think>Yes", reasoning_parser="think") as server:
        assert whole(server) == ("Yes", "hm", [], "stop")


def test_structured_answers_begin_without_reasoning() -> None:
    with server_of(THINKING, '{"a": 1}') as server:
        assert whole(server, response_format={"type": "json_object"})[0] == '{"a": 1}'
        assert prompt_of(server).endswith("<think>\n\n</think>\n\n")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools[1].function.name"),
        ({"tools": TOOLS * 65}, "tools"),
        ({"tools": TOOLS, "tool_choice": "required", "response_format": {"type": "json_object"}}, "tool_choice"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}],
             "tool_choice": "required"},
            "tools",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_called_is_refused(server: LiveServer, fields: dict[str, Any], param: str) -> None:
    answer = server.http.post("/v1/chat/completions", json={"model": MODEL, "messages": USER, **fields})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_models_and_servers_without_tools() -> None:
    body = {"model": MODEL, "messages": USER, "tools": TOOLS}
    with server_of(CHATML, "x") as server:
        assert "shows none" in server.http.post("/v1/chat/completions", json=body).text
    with server_of(HERMES, "x", tool_call_parser="none") as server:
        assert "--tool-call-parser none" in server.http.post("/v1/chat/completions", json=body).text
    unclear = CHATML + "{{ tools }}"
    with server_of(unclear, CALL) as server:
        assert "start the server with" in server.http.post("/v1/chat/completions", json=body).text
        assert whole(server, tools=TOOLS, tool_choice="required")[2] == [("weather", ARGUMENTS)]
    with server_of(unclear, CALL, tool_call_parser="hermes") as server:
        assert whole(server, tools=TOOLS)[2] == [("weather", ARGUMENTS)]


def test_unknown_parsers_stop_the_start() -> None:
    for field in ("tool_call_parser", "reasoning_parser"):
        fields: dict[str, Any] = {"served_model_names": ("m",), field: "other"}
        with pytest.raises(ConfigError, match="must be one of"):
            ServerSettings(**fields)
