"""/v1/completions through the openai client, over a real socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.fake_engine import INFO, TOKENIZER, FakeEngine, says
from tests.support.live_server import MODEL, LiveServer, live_server
from tests.support.tiny_tokenizers import SPECIAL_TOKENS, byte_fallback
from thranite.request import FinishReason
from thranite.server.logprobs import prompt_offsets
from thranite.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server() as running:
        yield running


@pytest.fixture(autouse=True)
def fresh_engine(server: LiveServer) -> None:
    server.engine.script = says("hello world")
    server.engine.submitted.clear()
    server.engine.stopped.clear()
    server.engine.aborted.clear()


def test_one_prompt(server: LiveServer) -> None:
    answer = server.openai.completions.create(model=MODEL, prompt="hi there")
    assert answer.id.startswith("cmpl-")
    assert (answer.object, answer.model) == ("text_completion", MODEL)
    (choice,) = answer.choices
    assert (choice.index, choice.text, choice.finish_reason, choice.logprobs) == (0, "hello world", "stop", None)
    usage = answer.usage
    assert usage is not None
    tokens = len(TOKENIZER.encode("hello world")) + 1
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(TOKENIZER.encode("hi there")), tokens)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 4
    assert server.engine.aborted == []


@pytest.mark.parametrize("stream", [False, True])
def test_prompts_of_every_form_and_several_samples(server: LiveServer, stream: bool) -> None:
    server.engine.script = says("one", "two")
    ids = TOKENIZER.encode("abc")
    for prompt, count in (("abc", 1), (["abc", "d"], 2), (ids, 1), ([ids, ids, ids], 3)):
        server.engine.submitted.clear()
        if stream:
            texts = [""] * count * 2
            for chunk in server.openai.completions.create(model=MODEL, prompt=prompt, n=2, stream=True):
                for choice in chunk.choices:
                    texts[choice.index] += choice.text
        else:
            answer = server.openai.completions.create(model=MODEL, prompt=prompt, n=2)
            assert [choice.index for choice in answer.choices] == list(range(2 * count))
            texts = [choice.text for choice in answer.choices]
        assert texts == ["one", "two"] * count
        assert server.engine.submitted[0].prompt_token_ids == tuple(ids)
        assert len({request.params.seed for request in server.engine.submitted}) == count


def test_a_stream(server: LiveServer) -> None:
    options = {"include_usage": True}
    chunks = list(
        server.openai.completions.create(model=MODEL, prompt="x", stream=True, stream_options=options)  # type: ignore[call-overload]
    )
    *parts, last = chunks
    assert "".join(part.choices[0].text for part in parts) == "hello world"
    assert [part.choices[0].finish_reason for part in parts] == [None] * (len(parts) - 1) + ["stop"]
    assert {part.usage for part in parts} == {None}
    assert last.choices == []
    assert last.usage.completion_tokens == len(TOKENIZER.encode("hello world")) + 1
    assert {chunk.id for chunk in chunks} == {last.id}
    assert {chunk.system_fingerprint for chunk in chunks} == {last.system_fingerprint}


def test_a_stop_string_ends_text_and_usage_and_tells_the_engine(server: LiveServer) -> None:
    answer = server.openai.completions.create(model=MODEL, prompt="x", stop=["o w", "nothing"])
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason) == ("hell", "stop")
    assert choice.model_extra == {"stop_reason": "o w"}
    (request,) = server.engine.submitted
    assert server.engine.stopped == [(request.request_id, 0)]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(TOKENIZER.encode("hello wor"))


def test_logprobs(server: LiveServer) -> None:
    answer = server.openai.completions.create(model=MODEL, prompt="x", logprobs=2, max_tokens=3)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["hello", " wor", "l"]
    assert logprobs.token_logprobs == [-0.5] * 3
    assert logprobs.text_offset == [0, 5, 9]
    assert logprobs.top_logprobs is not None
    assert [sorted(top.values()) for top in logprobs.top_logprobs] == [[-1.5, -0.5]] * 3
    assert answer.choices[0].finish_reason == "length"


def test_streamed_logprobs_are_those_of_the_whole(server: LiveServer) -> None:
    server.engine.script = says("hello world", tokens_per_delta=2)
    whole = server.openai.completions.create(model=MODEL, prompt="x", logprobs=1).choices[0].logprobs
    stream = server.openai.completions.create(model=MODEL, prompt="x", logprobs=1, stream=True)
    parts = [chunk.choices[0].logprobs for chunk in stream]
    assert whole is not None
    assert [token for part in parts if part for token in part.tokens or ()] == whole.tokens
    assert [offset for part in parts if part for offset in part.text_offset or ()] == whole.text_offset


def test_usage_with_every_chunk_is_the_sum_over_all_prompts(server: LiveServer) -> None:
    server.engine.script = says("hello world", "hello", tokens_per_delta=2)
    prompts = ["a", "hello wor", "abc"]
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"model": MODEL, "prompt": prompts, "n": 2, "stream": True, "stream_options": options}
    text = server.http.post("/v1/completions", json={**body, "return_token_ids": True}).text
    *chunks, last = [json.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {")]
    prompt, completion = sum(len(TOKENIZER.encode(item)) for item in prompts), 0
    for chunk in chunks:
        completion += sum(len(choice["token_ids"]) for choice in chunk["choices"])
        usage = chunk["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (prompt, completion)
        assert usage["total_tokens"] == prompt + completion
    assert len(chunks) > len(prompts) * 2
    assert last["choices"] == []
    assert last["usage"] == chunks[-1]["usage"]


@pytest.mark.parametrize("stream", [False, True])
def test_echo(server: LiveServer, stream: bool) -> None:
    for prompt in ("héllo ", TOKENIZER.encode("héllo ")):
        answer = server.openai.completions.create(model=MODEL, prompt=prompt, echo=True, stream=stream)
        text = "".join(c.choices[0].text for c in answer) if stream else answer.choices[0].text  # type: ignore[union-attr]
        assert text == "héllo hello world"


def test_only_an_echo(server: LiveServer) -> None:
    options: Any = {"include_usage": True}
    *parts, last = server.openai.completions.create(
        model=MODEL, prompt="abc", echo=True, max_tokens=0, stream=True, stream_options=options
    )
    assert [(part.choices[0].text, part.choices[0].finish_reason) for part in parts] == [("abc", "length")]
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (3, 0)
    body = {"model": MODEL, "prompt": "abc", "echo": True, "max_tokens": 0, "return_token_ids": True}
    (choice,) = server.http.post("/v1/completions", json=body).json()["choices"]
    assert (choice["text"], choice["token_ids"]) == ("abc", [])


@pytest.mark.parametrize(("max_tokens", "generated"), [(0, []), (1, ["hello"])])
def test_scoring_a_prompt(server: LiveServer, max_tokens: int, generated: list[str]) -> None:
    """echo with logprobs: how evaluation harnesses score given text, with or without a token of completion."""
    answer = server.openai.completions.create(
        model=MODEL, prompt="hello wor", echo=True, logprobs=1, max_tokens=max_tokens
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["hello", " wor", *generated]
    assert logprobs.token_logprobs == [None, -0.5, *[-0.5] * len(generated)]
    assert answer.choices[0].text == "hello wor" + "".join(generated)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(generated)


SPELT = "<|im_start|>é🙂 wor"  # seven tokens; those of 🙂 are its four bytes


@pytest.mark.parametrize(
    ("prompt", "skip", "echoed", "completed"),
    [
        (SPELT, True, [0, 12, 13, 13, 13, 13, 14], [18, 19, 19, 20, 21, 26]),
        (SPELT, False, [0, 12, 13, 13, 13, 13, 14], [18, 19, 29, 30, 31, 36]),
        (TOKENIZER.encode(SPELT), True, [0, 0, 1, 1, 1, 1, 2], [6, 7, 7, 8, 9, 14]),
        (TOKENIZER.encode(SPELT), False, [0, 12, 13, 13, 13, 13, 14], [18, 19, 29, 30, 31, 36]),
    ],
)
def test_text_offsets(
    server: LiveServer, prompt: str | list[int], skip: bool, echoed: list[int], completed: list[int]
) -> None:
    """Into the whole text: characters of several tokens, special tokens that it has or lacks, an echoed prompt."""
    server.engine.script = says("a<|im_end|>é hello")
    body = {"model": MODEL, "prompt": prompt, "logprobs": 0, "skip_special_tokens": skip, "max_tokens": 9}
    (whole,) = server.http.post("/v1/completions", json={**body, "echo": True}).json()["choices"]
    assert whole["logprobs"]["text_offset"] == echoed + completed
    assert whole["text"][completed[3] : completed[5]] == " hello"
    (alone,) = server.http.post("/v1/completions", json=body).json()["choices"]
    assert alone["logprobs"]["text_offset"] == [offset - completed[0] for offset in completed]
    events = server.http.post("/v1/completions", json={**body, "echo": True, "stream": True, "n": 2}).text.split("\n\n")
    choices = [json.loads(event[6:])["choices"][0] for event in events if event.startswith("data: {")]
    for index in range(2):
        mine = [choice for choice in choices if choice["index"] == index]
        assert "".join(choice["text"] for choice in mine) == whole["text"]
        for key, values in whole["logprobs"].items():
            assert [value for choice in mine if choice["logprobs"] for value in choice["logprobs"][key]] == values


def test_alternatives_of_an_echoed_prompt_are_as_many_as_of_the_completion(server: LiveServer) -> None:
    body = {"model": MODEL, "prompt": "hello wor", "echo": True, "logprobs": 0, "max_tokens": 1, "prompt_logprobs": 3}
    (choice,) = server.http.post("/v1/completions", json=body).json()["choices"]
    assert [None if top is None else len(top) for top in choice["logprobs"]["top_logprobs"]] == [None, 1, 1]
    assert len(choice["prompt_logprobs"][1]) == 3


def test_vllm_s_fields_reach_the_engine(server: LiveServer) -> None:
    extra = {
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "ignore_eos": True,
        "min_tokens": 2,
        "priority": -1,
        "stop_token_ids": [7],
        "allowed_token_ids": [1, 2],
        "bad_words": ["x"],
        "timeout": 3.5,
        "cache_salt": "tenant",
        "truncate_prompt_tokens": 2,
        "prompt_logprobs": 1,
        "return_token_ids": True,
    }
    answer = server.openai.completions.create(
        model=MODEL, prompt="abcd", max_tokens=5, logit_bias={"3": -2}, seed=11, extra_body=extra
    )
    (request,) = server.engine.submitted
    params = request.params
    assert (params.top_k, params.min_p, params.repetition_penalty, params.min_tokens) == (5, 0.1, 1.2, 2)
    assert (params.eos_token_ids, params.stop_token_ids, params.allowed_token_ids) == ((), (7,), (1, 2))
    assert (params.logit_bias, params.seed, params.max_tokens) == (((3, -2.0),), 11, 5)
    assert params.bad_words == (tuple(TOKENIZER.encode("x")),)
    assert (request.priority, request.timeout_seconds, request.cache_salt) == (-1, 3.5, "tenant")
    assert request.prompt_token_ids == tuple(TOKENIZER.encode("cd"))
    choice = answer.choices[0].model_extra or {}
    assert choice["prompt_token_ids"] == TOKENIZER.encode("cd")
    assert choice["token_ids"] == [*TOKENIZER.encode("hello world"), *INFO.eos_token_ids]
    (first, second) = choice["prompt_logprobs"]
    assert first is None
    assert second == {str(TOKENIZER.encode("d")[0]): {"logprob": -0.5, "rank": 1, "decoded_token": "d"}}


def test_defaults_of_the_model_serve_fields_left_out() -> None:
    with live_server(FakeEngine(), default_sampling={"temperature": 0.6, "top_k": 20, "max_tokens": 900}) as server:
        server.openai.completions.create(model=MODEL, prompt="abc")
        server.openai.completions.create(model=MODEL, prompt="abc", temperature=0, max_tokens=4)
    first, second = (request.params for request in server.engine.submitted)
    assert (first.temperature, first.top_k, first.max_tokens) == (0.6, 20, INFO.max_model_len - 3)
    assert (second.temperature, second.top_k, second.max_tokens) == (0.0, 20, 4)


def test_without_a_tokenizer_token_ids_go_in_and_out() -> None:
    with live_server(FakeEngine(says("hello", finish=FinishReason.LENGTH)), tokenizer=None) as server:
        answer = server.openai.completions.create(
            model=MODEL, prompt=[1, 2], logprobs=0, extra_body={"return_token_ids": True}
        )
        (choice,) = answer.choices
        assert choice.text == ""
        assert (choice.model_extra or {})["token_ids"] == TOKENIZER.encode("hello")
        assert choice.logprobs is not None
        assert choice.logprobs.tokens == [f"token_id:{TOKENIZER.encode('hello')[0]}"]
        refused = server.http.post("/v1/completions", json={"model": MODEL, "prompt": "text"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")
        refused = server.http.post(
            "/v1/chat/completions", json={"model": MODEL, "messages": [{"role": "user", "content": "a"}]}
        )
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "messages")


def test_offsets_where_the_text_s_first_space_is_the_tokenizer_s() -> None:
    """Llama-2's way: <s> before the prompt, a space of the tokenizer's own before its first word."""
    tokenizer = Tokenizer(byte_fallback(), SPECIAL_TOKENS)
    for text, offsets in (("hello he", [0, 0, 2, 3, 4, 5]), ("he<|eos|>he", [0, 0, 2, 9])):
        assert prompt_offsets(tokenizer, tokenizer.encode(text), text) == offsets
