"""/v1/responses through the openai client, over a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from pydantic import BaseModel

from tests.support.fake_engine import TOKENIZER, FakeEngine, says
from tests.support.live_server import MODEL, LiveServer, live_server
from tests.support.tool_chats import HERMES, THINKING, WEATHER
from thranite.request import FinishReason

TOOLS: Any = [{"type": "function", "strict": True, **WEATHER}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"place": "Paris"}}\n</tool_call>'
SAID = ["hello world", f"I look.\n{CALL}\n{CALL}", f"<think>\nhm\n</think>\n\nYes. {CALL}", ""]


@contextmanager
def served(*texts: str, template: str = HERMES) -> Iterator[LiveServer]:
    engine = FakeEngine(says(*texts, tokens_per_delta=2), max_model_len=4096)
    with live_server(engine, TOKENIZER.with_chat_template(template)) as server:
        yield server


def prompt_of(server: LiveServer) -> str:
    return TOKENIZER.decode(server.engine.submitted[-1].prompt_token_ids, skip_special_tokens=False)


def shown(response: Any) -> list[Any]:
    """Output without ids."""
    items = [item.model_dump(exclude_none=True) for item in response.output]
    for item in items:
        item.pop("id")
        item.pop("call_id", None)
        item.pop("parsed_arguments", None)  # the client's own
    return items


def test_an_answer() -> None:
    with served("hello world") as server:
        answer = server.openai.responses.create(
            model=MODEL, input="hi", instructions="be kind", max_output_tokens=50, temperature=0.5, store=False
        )
        assert answer.id.startswith("resp")
        assert (answer.output_text, answer.status, answer.error) == ("hello world", "completed", None)
        prompt = "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
        assert prompt_of(server) == prompt
        assert answer.usage is not None
        assert answer.usage.input_tokens_details.cached_tokens == 4
        assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
        params = server.engine.submitted[-1].params
        assert (params.max_tokens, params.temperature) == (50, 0.5)


@pytest.mark.parametrize("text", SAID)
def test_a_stream_has_the_items_of_the_whole(text: str) -> None:
    with served(text, template=THINKING) as server:
        fields: Any = {"model": MODEL, "input": "hi", "tools": TOOLS}
        whole = server.openai.responses.create(**fields)
        with server.openai.responses.stream(**fields) as stream:
            events = list(stream)
            final = stream.get_final_response()
        assert shown(final) == shown(whole)
        assert final.usage == whole.usage
        kinds = [event.type for event in events]
        assert kinds[:2] == ["response.created", "response.in_progress"]
        assert kinds[-1] == "response.completed"
        assert (
            kinds.count("response.output_item.added") == kinds.count("response.output_item.done") == len(whole.output)
        )
        numbers = [event.sequence_number for event in events]
        assert numbers == list(range(len(numbers)))
        said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert said == whole.output_text


def test_calls_and_their_results() -> None:
    with served(f"I look.\n{CALL}") as server:
        answer = server.openai.responses.create(model=MODEL, input="hi", tools=TOOLS)
        message, call = answer.output
        assert call.type == "function_call"
        assert (call.name, call.arguments) == ("weather", '{"place": "Paris"}')
        conversation: Any = [
            {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            message.model_dump(exclude_none=True),
            call.model_dump(exclude_none=True),
            {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"},
        ]
        server.openai.responses.create(model=MODEL, input=conversation, tools=TOOLS)
        prompt = prompt_of(server)
        assert 'I look.<tool_call>{"name": "weather", "arguments": {"place": "Paris"}}</tool_call><|im_end|>' in prompt
        assert "<|im_start|>tool\nsunny<|im_end|>" in prompt
        server.openai.responses.create(model=MODEL, input="hi", tools=TOOLS, tool_choice="required")
        assert server.engine.submitted[-1].grammar is not None


def test_thoughts_come_back() -> None:
    template = THINKING.replace("{{ '<|im_end|>\n' }}", "{{ message.reasoning_content or '' }}{{ '<|im_end|>\n' }}")
    with served("<think>hm</think>Yes", template=template) as server:
        answer = server.openai.responses.create(model=MODEL, input="hi")
        assert [item["type"] for item in shown(answer)] == ["reasoning", "message"]
        echoed: Any = [{"role": "user", "content": "hi"}, *(i.model_dump(exclude_none=True) for i in answer.output)]
        server.openai.responses.create(model=MODEL, input=[*echoed, {"role": "user", "content": "so?"}])
        assert "assistant\nYeshm<|im_end|>" in prompt_of(server)


def test_structured_output() -> None:
    class Answer(BaseModel):
        a: int

    with served('{"a": 3}') as server:
        answer = server.openai.responses.parse(model=MODEL, input="hi", text_format=Answer)
        assert answer.output_parsed == Answer(a=3)
        assert server.engine.submitted[-1].grammar is not None


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_cut_for_length(stream: bool) -> None:
    with served("hello world") as server:
        if stream:
            *_, last = server.openai.responses.create(model=MODEL, input="hi", max_output_tokens=1, stream=True)
            assert last.type == "response.incomplete"
            answer = last.response
        else:
            answer = server.openai.responses.create(model=MODEL, input="hi", max_output_tokens=1)
        assert answer.status == "incomplete"
        assert answer.incomplete_details is not None
        assert answer.incomplete_details.reason == "max_output_tokens"


def test_an_error_within_a_stream() -> None:
    with served("hello world") as server:
        server.engine.script = says("hello world", finish=FinishReason.ERROR)
        events = list(server.openai.responses.create(model=MODEL, input="hi", stream=True))
        last = events[-1]
        assert last.type == "error"
        assert "could not go on" in last.message
        assert [event.sequence_number for event in events] == list(range(len(events)))


CALL_ITEM = {"type": "function_call", "name": "f", "call_id": "1"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [{"content": "a"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].arguments"),
        ({"input": [{"type": "function_call_output", "output": "f"}]}, "input[0].call_id"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"include": ["reasoning.encrypted_content"]}, "include"),
        ({"reasoning": {"effort": "low"}}, "reasoning"),
        ({"truncation": "auto"}, "truncation"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"tools": [{"name": "f"}, {"name": "f"}]}, "tools[1].name"),
        (
            {"input": [{"role": "user", "content": "a"}, {**CALL_ITEM, "arguments": "{"}], "instructions": "b"},
            "input[1].arguments",
        ),
        ({"text": {"format": {"type": "json_schema", "name": "a", "schema": {"not": {}}}}}, "text.format"),
        ({"odd": 1}, "odd"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], param: str) -> None:
    with served("x") as server:
        answer = server.http.post("/v1/responses", json={"model": MODEL, "input": "hi", **fields})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
        assert not server.engine.submitted


def test_errors_are_those_of_chat() -> None:
    """With this API's names of fields."""
    with served("x") as server:
        answer = server.http.post("/v1/responses", json={"model": "nobody", "input": "hi"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
        answer = server.http.post("/v1/responses", json={"model": MODEL, "input": "hi", "max_output_tokens": 0})
        assert answer.json()["error"]["message"] == "max_output_tokens must be at least 1, got 0"
