"""/v1/chat/completions through the openai client, over a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.support.fake_engine import TOKENIZER, FakeEngine, says
from tests.support.live_server import MODEL, LiveServer, live_server

HELLO: Any = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server() as running:
        yield running


@pytest.fixture(autouse=True)
def fresh_engine(server: LiveServer) -> None:
    server.engine.script = says("hello world")
    server.engine.submitted.clear()


def prompt_of(server: LiveServer) -> str:
    return TOKENIZER.decode(server.engine.submitted[-1].prompt_token_ids, skip_special_tokens=False)


def test_an_answer(server: LiveServer) -> None:
    answer = server.openai.chat.completions.create(model=MODEL, messages=HELLO)
    assert answer.id.startswith("chatcmpl-")
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "hello world", "stop")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(server.engine.submitted[0].prompt_token_ids)
    assert prompt_of(server) == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert (
        answer.system_fingerprint
        == server.openai.chat.completions.create(model=MODEL, messages=HELLO).system_fingerprint
    )


def test_messages_of_every_kind(server: LiveServer) -> None:
    messages: Any = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "name": "ann", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        # What a client echoes of an earlier answer.
        {"role": "assistant", "content": "c", "refusal": None, "tool_calls": None, "annotations": [], "audio": None},
    ]
    extra = {"continue_final_message": True, "chat_template_kwargs": {"unused": 1}}
    server.openai.chat.completions.create(model=MODEL, messages=messages, extra_body=extra)
    assert prompt_of(server) == (
        "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\na\nb<|im_end|>\n<|im_start|>assistant\nc"
    )


def test_a_stream_has_openai_s_sequence(server: LiveServer) -> None:
    options: Any = {"include_usage": True}
    chunks = list(
        server.openai.chat.completions.create(model=MODEL, messages=HELLO, stream=True, stream_options=options)
    )
    first, *content, finish, usage = chunks
    assert first.choices[0].delta.role == "assistant"
    assert first.choices[0].delta.content == ""
    assert "".join(chunk.choices[0].delta.content or "" for chunk in content) == "hello world"
    assert all(chunk.choices[0].delta.role is None for chunk in content)
    assert finish.choices[0].delta.content is None
    assert finish.choices[0].finish_reason == "stop"
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.completion_tokens == len(TOKENIZER.encode("hello world")) + 1


def test_usage_with_every_chunk(server: LiveServer) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(
        server.openai.chat.completions.create(model=MODEL, messages=HELLO, stream=True, stream_options=options)
    )
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage is not None]
    assert len(counts) == len(chunks)
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (1, len(TOKENIZER.encode("hello world")) + 1)
    options = {"continuous_usage_stats": True}
    pieces = server.openai.completions.create(model=MODEL, prompt="a", stream=True, stream_options=options)
    assert {piece.usage for piece in pieces} == {None}
    options["include_usage"] = True
    pieces = server.openai.completions.create(model=MODEL, prompt="a", stream=True, stream_options=options)
    assert [piece.usage.total_tokens for piece in pieces if piece.usage] == [2, 3, 4, 5, 6, 6]


def test_the_bytes_of_a_stream(server: LiveServer) -> None:
    body = {"model": MODEL, "messages": HELLO, "stream": True, "max_tokens": 1}
    answer = server.http.post("/v1/chat/completions", json=body)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = answer.text.split("\n\n")
    assert all(event.startswith("data: {") for event in events[:-2])
    assert events[-2:] == ["data: [DONE]", ""]
    assert '"delta":{"role":"assistant","content":"","refusal":null}' in events[0]
    assert '"delta":{"content":"hello"},"logprobs":null,"finish_reason":null' in events[1]
    assert '"delta":{},"logprobs":null,"finish_reason":"length"' in events[2]
    assert "usage" not in answer.text


def test_samples_stream_side_by_side(server: LiveServer) -> None:
    server.engine.script = says("one", "two", "three")
    texts, roles, ends = [""] * 3, [0] * 3, [0] * 3
    for chunk in server.openai.chat.completions.create(model=MODEL, messages=HELLO, n=3, stream=True):
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        roles[choice.index] += choice.delta.role is not None
        ends[choice.index] += choice.finish_reason is not None
    assert (texts, roles, ends) == (["one", "two", "three"], [1] * 3, [1] * 3)


def test_characters_and_stop_strings_are_never_half_sent(server: LiveServer) -> None:
    server.engine.script = says("héllo 日本 🌶️ STOP hidden")
    stream = server.openai.chat.completions.create(model=MODEL, messages=HELLO, stop="STOP", stream=True)
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(pieces) == "héllo 日本 🌶️ "
    assert not any("\ufffd" in piece or "S" in piece for piece in pieces)


def test_logprobs(server: LiveServer) -> None:
    whole = server.openai.chat.completions.create(model=MODEL, messages=HELLO, logprobs=True, top_logprobs=2)
    stream = server.openai.chat.completions.create(
        model=MODEL, messages=HELLO, logprobs=True, top_logprobs=2, stream=True
    )
    parts = [chunk.choices[0].logprobs for chunk in stream]
    assert whole.choices[0].logprobs is not None
    content = whole.choices[0].logprobs.content
    assert content is not None
    assert [token.token for token in content] == ["hello", " wor", "l", "d", "<|eos|>"]
    assert content[0].bytes == list(b"hello")
    assert [(top.token, top.logprob) for top in content[0].top_logprobs] == [
        ("hello", -0.5),
        ("Ġw"[1:].join([" ", ""]), -1.5),
    ]
    assert [token for part in parts if part for token in part.content or ()] == content


def test_logprobs_without_alternatives(server: LiveServer) -> None:
    answer = server.openai.chat.completions.create(model=MODEL, messages=HELLO, logprobs=True)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert [token.top_logprobs for token in logprobs.content or ()] == [[]] * 5
    none = server.openai.chat.completions.create(model=MODEL, messages=HELLO, logprobs=False, top_logprobs=0)
    assert none.choices[0].logprobs is None


def test_token_ids_of_a_stream(server: LiveServer) -> None:
    body = {"model": MODEL, "messages": HELLO, "n": 2, "extra_body": {"return_token_ids": True}}
    server.engine.script = says("one", "two three")
    whole = server.openai.chat.completions.create(**body)
    chunks = list(server.openai.chat.completions.create(**body, stream=True))
    assert [getattr(chunk, "prompt_token_ids", None) for chunk in chunks[:2]] == [whole.prompt_token_ids, None]
    assert sum(hasattr(chunk, "prompt_token_ids") for chunk in chunks) == 1
    for index, choice in enumerate(whole.choices):
        parts = [part for chunk in chunks for part in chunk.choices if part.index == index]
        assert [token for part in parts for token in getattr(part, "token_ids", ())] == choice.token_ids


def test_max_tokens_in_both_spellings(server: LiveServer) -> None:
    for options in ({"max_tokens": 2}, {"max_completion_tokens": 2}, {"max_completion_tokens": 2, "max_tokens": 9}):
        answer = server.openai.chat.completions.create(model=MODEL, messages=HELLO, **options)  # type: ignore[call-overload]
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("hello wor", "length")


def test_the_model_s_template_can_be_replaced() -> None:
    with live_server(FakeEngine(), chat_template="{{ messages[0].content }}!") as server:
        server.openai.chat.completions.create(model=MODEL, messages=HELLO)
        assert prompt_of(server) == "hello!"


def test_many_at_once(server: LiveServer) -> None:
    def ask(number: int) -> str | None:
        messages: Any = [{"role": "user", "content": f"question {number}"}]
        return server.openai.chat.completions.create(model=MODEL, messages=messages).choices[0].message.content

    server.engine.script = lambda request: says(f"{len(request.prompt_token_ids)} tokens")(request)
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(ask, range(64)))
    sizes = [
        len(TOKENIZER.apply_chat_template([{"role": "user", "content": f"question {number}"}])) for number in range(64)
    ]
    assert answers == [f"{size} tokens" for size in sizes]
