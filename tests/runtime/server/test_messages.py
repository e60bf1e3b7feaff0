"""/v1/messages through the anthropic client, over a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anthropic
import pytest

from tests.support.fake_engine import TOKENIZER, FakeEngine, says
from tests.support.live_server import MODEL, LiveServer, live_server
from tests.support.tool_chats import HERMES, THINKING, WEATHER
from thranite.errors import EngineDead, Rejected
from thranite.request import FinishReason
from thranite.server.keys import ApiKey

RESULT = {"type": "tool_result", "tool_use_id": "a"}
USE = {"type": "tool_use", "id": "a", "name": "weather", "input": {"place": "Paris"}}
USER: Any = [{"role": "user", "content": "hi"}]
TOOLS: Any = [{"name": "weather", "description": "the weather", "input_schema": WEATHER["parameters"]}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"place": "Paris"}}\n</tool_call>'


@contextmanager
def served(*texts: str, template: str = HERMES, **settings: Any) -> Iterator[tuple[anthropic.Anthropic, LiveServer]]:
    engine = FakeEngine(says(*texts, tokens_per_delta=2), max_model_len=4096)
    with (
        live_server(engine, TOKENIZER.with_chat_template(template), **settings) as server,
        anthropic.Anthropic(base_url=server.url, api_key="secret", max_retries=0, timeout=20) as client,
    ):
        yield client, server


def prompt_of(server: LiveServer) -> str:
    return TOKENIZER.decode(server.engine.submitted[-1].prompt_token_ids, skip_special_tokens=False)


def test_an_answer() -> None:
    with served("hello world") as (client, server):
        sampling = {"temperature": 0.3, "top_k": 5, "top_p": 0.9}
        answer = client.messages.create(
            model=MODEL, max_tokens=50, messages=USER, system="be kind", extra_body=sampling
        )
        assert answer.id.startswith("msg")
        assert (answer.role, answer.model, answer.stop_reason) == ("assistant", MODEL, "end_turn")
        assert [block.model_dump(exclude_none=True) for block in answer.content] == [
            {"type": "text", "text": "hello world"}
        ]
        assert answer.usage.cache_read_input_tokens == 4
        prompt = prompt_of(server)
        assert prompt == (
            "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
        )
        params = server.engine.submitted[-1].params
        assert answer.usage.input_tokens + 4 == len(server.engine.submitted[-1].prompt_token_ids)
        assert (params.temperature, params.top_k, params.top_p, params.max_tokens) == (0.3, 5, 0.9, 50)


@pytest.mark.parametrize(
    "text", ["hello world", f"I look.\n{CALL}\n{CALL}", f"<think>\nhm\n</think>\n\nYes. {CALL}", ""]
)
def test_a_stream_has_the_blocks_of_the_whole(text: str) -> None:
    with served(text, template=THINKING) as (client, _):
        fields: Any = {"model": MODEL, "max_tokens": 500, "messages": USER, "tools": TOOLS}
        whole = client.messages.create(**fields)
        with client.messages.stream(**fields) as stream:
            kinds = [event.type for event in stream]
            streamed = stream.get_final_message()
        assert shown(streamed) == shown(whole)
        assert (streamed.stop_reason, streamed.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
        assert whole.stop_reason == ("tool_use" if CALL in text else "end_turn")
        assert kinds[0] == "message_start"
        assert kinds[-1] == "message_stop"
        assert kinds.count("content_block_start") == kinds.count("content_block_stop") == len(whole.content)


def shown(message: Any) -> list[Any]:
    blocks = [block.model_dump(exclude_none=True) for block in message.content]
    for block in blocks:
        if block["type"] == "tool_use":
            assert block.pop("id").startswith("toolu_")
    return blocks


def test_tools() -> None:
    with served(f"I look.\n{CALL}") as (client, server):
        answer = client.messages.create(model=MODEL, max_tokens=500, messages=USER, tools=TOOLS)
        text, call = answer.content
        assert text.type == "text"
        assert call.type == "tool_use"
        assert (text.text, call.name, call.input) == ("I look.", "weather", {"place": "Paris"})
        conversation: Any = [
            *USER,
            {"role": "assistant", "content": [{"type": "text", "text": "I look."}, call.model_dump(exclude_none=True)]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "sunny"}]},
                {"type": "text", "text": "and now?", "cache_control": {"type": "ephemeral"}},
            ]},
        ]  # fmt: skip
        client.messages.create(model=MODEL, max_tokens=500, messages=conversation, tools=TOOLS)
        prompt = prompt_of(server)
        assert '<tool_call>{"name": "weather", "arguments": {"place": "Paris"}}</tool_call>' in prompt
        assert "<|im_start|>tool\nsunny<|im_end|>\n<|im_start|>user\nand now?<|im_end|>" in prompt
        count = client.messages.count_tokens(model=MODEL, messages=conversation, tools=TOOLS)
        assert count.input_tokens == len(server.engine.submitted[-1].prompt_token_ids)


@pytest.mark.parametrize(
    ("choice", "forced", "calls"),
    [
        ({"type": "auto"}, False, 2),
        ({"type": "auto", "disable_parallel_tool_use": True}, False, 1),
        ({"type": "any"}, True, 2),
        ({"type": "tool", "name": "weather"}, True, 1),
        ({"type": "none"}, False, 0),
    ],
)
def test_tool_choice(choice: Any, forced: bool, calls: int) -> None:
    with served(CALL + CALL) as (client, server):
        answer = client.messages.create(model=MODEL, max_tokens=500, messages=USER, tools=TOOLS, tool_choice=choice)
        assert sum(block.type == "tool_use" for block in answer.content) == calls
        assert (server.engine.submitted[-1].grammar is not None) is forced


def test_the_count_of_a_forced_call_is_its_prompt_s() -> None:
    with served(CALL, template=THINKING) as (client, server):
        asked: Any = {"model": MODEL, "messages": USER, "tools": TOOLS, "tool_choice": {"type": "any"}}
        client.messages.create(max_tokens=500, **asked)
        assert prompt_of(server).endswith("</think>\n\n"), "a forced call is not thought about"
        count = client.messages.count_tokens(**asked)
        assert count.input_tokens == len(server.engine.submitted[-1].prompt_token_ids)


def test_thinking() -> None:
    with served("<think>hm</think>Yes", template=THINKING) as (client, server):
        answer = client.messages.create(model=MODEL, max_tokens=50, messages=USER)
        thought, text = answer.content
        assert thought.type == "thinking"
        assert text.type == "text"
        assert (thought.thinking, text.text) == ("hm", "Yes")
        client.messages.create(model=MODEL, max_tokens=50, messages=USER, thinking={"type": "disabled"})
        assert prompt_of(server).endswith("<think>\n\n</think>\n\n")


def test_ends() -> None:
    with served("hello world") as (client, server):
        answer = client.messages.create(model=MODEL, max_tokens=50, messages=USER, stop_sequences=["o w"])
        assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "o w")
        assert client.messages.create(model=MODEL, max_tokens=1, messages=USER).stop_reason == "max_tokens"
        begun: Any = [*USER, {"role": "assistant", "content": "I sa"}]
        client.messages.create(model=MODEL, max_tokens=50, messages=begun)
        assert prompt_of(server).endswith("<|im_start|>assistant\nI sa")


def test_errors_are_anthropic_s() -> None:
    with served("x", api_keys=(ApiKey("secret"),)) as (client, server):
        with pytest.raises(anthropic.BadRequestError) as bad:
            client.messages.create(model=MODEL, max_tokens=0, messages=USER)
        assert bad.value.body == {
            "type": "error",
            "error": {"type": "invalid_request_error", "message": "max_tokens: max_tokens must be at least 1, got 0"},
        }
        with pytest.raises(anthropic.NotFoundError):
            client.messages.create(model="other", max_tokens=5, messages=USER)
        with pytest.raises(anthropic.AuthenticationError) as key:
            client.with_options(api_key="wrong").messages.create(model=MODEL, max_tokens=5, messages=USER)
        assert isinstance(key.value.body, dict)
        assert (key.value.body["type"], key.value.body["error"]["type"]) == ("error", "authentication_error")
        for method, path, status in (("GET", "/v1/messages", 405), ("POST", "/v1/messages/batches", 404)):
            answer = server.http.request(method, path, headers={"x-api-key": "secret"})
            assert (answer.status_code, answer.json()["type"]) == (status, "error")
        server.engine.refuse = Rejected("full", "queue_full", 2.0)
        with pytest.raises(anthropic.RateLimitError) as full:
            client.messages.create(model=MODEL, max_tokens=5, messages=USER)
        assert full.value.response.headers["retry-after"] == "2"
        server.engine.refuse = EngineDead("gone")
        with pytest.raises(anthropic.APIStatusError) as dead:
            client.messages.create(model=MODEL, max_tokens=5, messages=USER)
        assert dead.value.status_code == 503


def test_an_error_within_a_stream() -> None:
    with served("hello world") as (client, server):
        server.engine.script = says("hello world", finish=FinishReason.ERROR)
        with (
            pytest.raises(anthropic.APIStatusError),
            client.messages.stream(model=MODEL, max_tokens=50, messages=USER) as stream,
        ):
            stream.until_done()


@pytest.mark.parametrize(
    ("fields", "says_field"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": "a"}]}]}, "messages[0].content"),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "a"}]}]},
            "messages[0]",
        ),
        ({"messages": [*USER, {"role": "assistant", "content": [USE]}], "tools": TOOLS}, "messages: a last message"),
        ({"odd": 1}, "odd"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking.type"),
        ({"container": "x"}, "container"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools[1].name"),
        ({"stop_sequences": [""]}, "stop_sequences must not"),
        ({"stop_sequences": ["a"] * 129}, "stop_sequences holds 129"),
        ({"max_tokens": None}, "max_tokens"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], says_field: str) -> None:
    with served("x") as (_, server):
        body = {"model": MODEL, "max_tokens": 5, "messages": USER, **fields}
        answer = server.http.post("/v1/messages", json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert says_field in answer.json()["error"]["message"]
        assert not server.engine.submitted
