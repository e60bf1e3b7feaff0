"""Every field that is malformed or not supported: 400 that names it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.fake_engine import INFO, TOKENIZER
from tests.support.live_server import MODEL, LiveServer, live_server
from tests.support.tiny_tokenizers import SPECIAL_TOKENS
from thranite.text.prompt import ENDLESS_CHARACTERS

USER = {"role": "user", "content": "hi"}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
BAD_CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "[]"}}

EOS = SPECIAL_TOKENS["eos_token"]  # text that no grammar can write

BOTH: list[tuple[dict[str, Any], str]] = [
    ({"unknown_field": 1}, "unknown_field"),
    ({"model": None}, "model"),
    ({"model": 3}, "model"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": -1}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": 1.5}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"n": 0}, "n"),
    ({"n": True}, "n"),
    ({"n": INFO.max_num_seqs + 1}, "n"),
    ({"seed": 2**64}, "seed"),
    ({"stop": [""]}, "stop"),
    ({"stop": 1}, "stop"),
    ({"stop": ["a"] * 129}, "stop"),
    ({"stop_token_ids": [1] * 1025}, "stop_token_ids"),
    ({"bad_words": ["a"] * 1025}, "bad_words"),
    ({"bad_words": ["a" * 1025]}, "bad_words"),
    ({"cache_salt": "a" * 1025}, "cache_salt"),
    ({"repetition_penalty": 1e-300}, "repetition_penalty"),
    ({"allowed_token_ids": [1] * (INFO.vocab_size + 1)}, "allowed_token_ids"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"5": "y"}}, "logit_bias"),
    ({"logit_bias": {"5": 200}}, "logit_bias"),
    ({"logit_bias": {str(INFO.vocab_size): 1}}, "logit_bias"),
    ({"allowed_token_ids": []}, "allowed_token_ids"),
    ({"allowed_token_ids": [-1]}, "allowed_token_ids"),
    ({"stop_token_ids": [INFO.vocab_size]}, "stop_token_ids"),
    ({"bad_words": [""]}, "bad_words"),
    ({"min_tokens": 9, "max_tokens": 3}, "min_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    ({"prompt_logprobs": 21}, "prompt_logprobs"),
    ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    ({"timeout": 0}, "timeout"),
    ({"priority": "high"}, "priority"),
    ({"priority": 10**30}, "priority"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"other": 1}}, "stream_options.other"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
    ({"store": True}, "store"),
    ({"service_tier": "flex"}, "service_tier"),
    ({"metadata": {"a": 1}}, "metadata"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, "response_format.json_schema.name"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "x"}}}},
        "response_format",
    ),
    ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
    ({"guided_json": {"not": {}}}, "guided_json"),
    ({"guided_json": "{"}, "guided_json"),
    ({"guided_json": {"$ref": "#"}}, "guided_json"),
    ({"guided_regex": "("}, "guided_regex"),
    ({"guided_choice": []}, "guided_choice"),
    ({"guided_choice": ["a", f"b{EOS}"]}, "guided_choice"),
    ({"guided_json": {"properties": {"a": {"enum": [1, EOS]}}}}, "guided_json"),
    ({"guided_regex": f"a{EOS}?"}, "guided_regex"),
    ({"guided_grammar": "start: x"}, "guided_grammar"),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs"),
    ({"structured_outputs": {"xml": 1}}, "structured_outputs.xml"),
    ({"structured_outputs": {"regex": "["}}, "structured_outputs"),
]
COMPLETION: list[tuple[dict[str, Any], str]] = [
    ({"prompt": [[1]] * 1100, "cache_salt": "a" * 1000}, "cache_salt"),
    ({"prompt": [[1]] * 1100, "bad_words": ["a" * 500] * 2}, "bad_words"),
    ({"prompt": None}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": ["a", 1]}, "prompt"),
    ({"prompt": [[1]] * 2049}, "prompt"),
    ({"prompt": ["a", [1]]}, "prompt"),
    ({"prompt": [[1], []]}, "prompt"),
    ({"prompt": [1, INFO.vocab_size]}, "prompt"),
    ({"prompt": [[1, "a"]]}, "prompt[0][1]"),
    ({"prompt": [1] * INFO.max_model_len}, "prompt"),
    ({"prompt": "hi", "max_tokens": INFO.max_model_len}, "prompt"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"suffix": "end"}, "suffix"),
    ({"best_of": 2}, "best_of"),
    ({"best_of": True}, "best_of"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"messages": [USER]}, "messages"),
]
CHAT: list[tuple[dict[str, Any], str]] = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [USER, {"content": "a"}]}, "messages[1].role"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].tool_call_id"),
    ({"messages": [{"role": "user", "content": "a", "tool_call_id": "x"}]}, "messages[0].tool_call_id"),
    ({"messages": [{"role": "function", "content": "a"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": "a", "mood": 1}]}, "messages[0].mood"),
    ({"messages": [USER, {"role": "assistant", "tool_calls": [{}]}]}, "messages[1].tool_calls[0].function"),
    ({"messages": [{**USER, "tool_calls": [CALL]}]}, "messages[0].tool_calls"),
    ({"messages": [{"role": "assistant", "tool_calls": []}]}, "messages[0].content"),
    (
        {"messages": [USER, {"role": "assistant", "tool_calls": [BAD_CALL]}]},
        "messages[1].tool_calls[0].function.arguments",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "user", "content": "a" * INFO.max_model_len}]}, "messages"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{"type": "web"}]}, "tools[0].type"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"functions": [{}]}, "functions"),
    ({"function_call": "auto"}, "function_call"),
    ({"audio": {}}, "audio"),
    ({"modalities": ["audio"]}, "modalities"),
    ({"moderation": {}}, "moderation"),
    ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
    ({"tool_choice": "perhaps"}, "tool_choice"),
    ({"prediction": {}}, "prediction"),
    ({"prompt_cache_options": {}}, "prompt_cache_options"),
    ({"prompt_cache_retention": "24h"}, "prompt_cache_retention"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"verbosity": "low"}, "verbosity"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"logprobs": 1}, "logprobs"),
    ({"top_logprobs": 1}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"add_generation_prompt": True, "continue_final_message": True}, "continue_final_message"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ({"chat_template_kwargs": []}, "chat_template_kwargs"),
    ({"prompt": "a"}, "prompt"),
]
CASES = [
    *(("/v1/completions", {"prompt": "hi"}, *case) for case in BOTH + COMPLETION),
    *(("/v1/chat/completions", {"messages": [USER]}, *case) for case in BOTH + CHAT),
]


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server() as running:
        yield running


@pytest.mark.parametrize(("path", "base", "fields", "param"), CASES, ids=lambda value: str(value)[:60])
def test_the_answer_names_the_field(
    server: LiveServer, path: str, base: dict[str, Any], fields: dict[str, Any], param: str
) -> None:
    submitted = len(server.engine.submitted)
    answer = server.http.post(path, json={"model": MODEL, **base, **fields})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert len(server.engine.submitted) == submitted, "a bad request must not reach the engine"


OFF: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"suffix": "", "best_of": 1, "user": "u", "n": None, "stop": None, "logprobs": None}),
    (
        "/v1/chat/completions",
        {
            "tools": [],
            "tool_choice": "none",
            "functions": None,
            "function_call": "none",
            "response_format": {"type": "text"},
            "modalities": ["text"],
            "parallel_tool_calls": False,
            "store": False,
            "service_tier": "auto",
            "verbosity": "medium",
            "reasoning_effort": "none",
            "user": "u",
            "metadata": {"a": "b"},
            "safety_identifier": "s",
            "prompt_cache_key": "k",
            "stream": False,
            "stream_options": None,
            "logit_bias": {},
            "ignore_eos": None,
            "prompt_cache_retention": None,
        },
    ),
]


@pytest.mark.parametrize(("path", "fields"), OFF)
def test_values_that_mean_off_pass(server: LiveServer, path: str, fields: dict[str, Any]) -> None:
    base = {"prompt": "hi"} if path == "/v1/completions" else {"messages": [USER]}
    assert server.http.post(path, json={"model": MODEL, **base, **fields}).status_code == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"text"', b'{"model": "\xff"}', b'{"model": "\\ud800"}', b"null"])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_bodies_that_are_no_request(server: LiveServer, path: str, body: bytes) -> None:
    answer = server.http.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"odd": 1, "prompt": "a"}, "unknown_parameter"),
        ({}, "missing_required_parameter"),
        ({"prompt": 1.5}, "invalid_type"),
        ({"prompt": "a", "suffix": "b"}, "unsupported_parameter"),
    ],
)
def test_codes_tell_programs_what_was_wrong(server: LiveServer, fields: dict[str, Any], code: str) -> None:
    answer = server.http.post("/v1/completions", json={"model": MODEL, **fields})
    assert answer.json()["error"]["code"] == code


def test_context_length_has_openai_s_code(server: LiveServer) -> None:
    answer = server.http.post("/v1/completions", json={"model": MODEL, "prompt": [1] * INFO.max_model_len})
    error = answer.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "maximum context length is 128 tokens" in error["message"]


@pytest.mark.parametrize(
    ("path", "field"), [("completions", "prompt"), ("chat/completions", "messages"), ("embeddings", "input")]
)
def test_a_text_too_long_for_any_tokens_is_not_tokenised(server: LiveServer, path: str, field: str) -> None:
    text = "a" * (INFO.max_model_len * TOKENIZER.most_characters + 1)
    body = {"model": MODEL, field: [{"role": "user", "content": text}] if field == "messages" else text}
    error = server.http.post(f"/v1/{path}", json=body).json()["error"]
    assert (error["param"], error["code"]) == (field, "context_length_exceeded")
    assert "characters" in error["message"]


@pytest.mark.parametrize(
    ("path", "field", "extra"),
    [
        ("/v1/completions", "prompt", {"truncate_prompt_tokens": 3, "max_tokens": 1}),
        ("/v1/chat/completions", "messages", {"truncate_prompt_tokens": 3, "max_tokens": 1}),
        ("/generate", "prompt", {"truncate_prompt_tokens": 3, "max_tokens": 1}),
        ("/tokenize", "prompt", {}),
        ("/tokenize", "messages", {}),
        ("/v1/messages/count_tokens", "messages", {}),
    ],
)
def test_a_text_to_be_counted_or_cut_may_be_long_but_not_endless(
    server: LiveServer, path: str, field: str, extra: dict[str, Any]
) -> None:
    most = INFO.max_model_len * max(ENDLESS_CHARACTERS, TOKENIZER.most_characters)
    for length, status in ((most - 100, 200), (most + 1, 400)):
        text = "a" * length
        body = {"model": MODEL, field: [{"role": "user", "content": text}] if field == "messages" else text, **extra}
        answer = server.http.post(path, json=body)
        assert answer.status_code == status, answer.text
        assert status == 200 or "characters" in answer.json()["error"]["message"]
