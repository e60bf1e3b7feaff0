"""POST /generate, /tokenize, /detokenize and WebSocket /ws/generate, over a real socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
import websockets
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_async
from websockets.sync.client import connect

from tests.support.fake_engine import INFO, TOKENIZER, FakeEngine, says
from tests.support.live_server import MODEL, LiveServer, live_server, serve
from tests.support.waiting import wait_for
from thranite.errors import EngineDead, Rejected
from thranite.server.app import build_app
from thranite.server.gate import Gate
from thranite.server.keys import ApiKey
from thranite.server.metrics_source import MetricsSource
from thranite.server.settings import ServerSettings

HELLO_IDS = [*TOKENIZER.encode("hello world"), *INFO.eos_token_ids]


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server() as running:
        yield running


@pytest.fixture(autouse=True)
def fresh_engine(server: LiveServer) -> None:
    server.engine.script = says("hello world")
    server.engine.submitted.clear()
    server.engine.aborted.clear()


def socket_url(server: LiveServer) -> str:
    return server.url.replace("http", "ws") + "/ws/generate"


def test_generate(server: LiveServer) -> None:
    answer = server.http.post("/generate", json={"prompt": "hi", "max_tokens": 50, "temperature": 0.5}).json()
    usage = answer.pop("usage")
    assert answer.pop("id").startswith("gen-")
    assert answer == {"type": "done", "text": "hello world", "token_ids": HELLO_IDS, "finish_reason": "stop"}
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (2, len(HELLO_IDS))
    assert server.engine.submitted[0].params.temperature == 0.5
    named = server.http.post("/generate", json={"prompt": [1, 2], "id": "mine", "model": MODEL, "stop": "o w"}).json()
    assert (named["id"], named["text"], named["stop_reason"]) == ("mine", "hell", "o w")


def test_generate_tells_the_prompt_s_tokens_if_asked(server: LiveServer) -> None:
    for stream in (False, True):
        body = {"prompt": "hi", "return_token_ids": True, "stream": stream}
        text = server.http.post("/generate", json=body).text.removesuffix("\n\ndata: [DONE]\n\n")
        done = json.loads(text.rsplit("data: ", 1)[-1])
        assert done["prompt_token_ids"] == TOKENIZER.encode("hi")


def test_generate_streams(server: LiveServer) -> None:
    text = server.http.post("/generate", json={"prompt": "hi", "stream": True}).text
    *events, done, end = text.strip().split("\n\n")
    deltas = [json.loads(event.removeprefix("data: ")) for event in events]
    assert end == "data: [DONE]"
    final = json.loads(done.removeprefix("data: "))
    assert {delta["type"] for delta in deltas} == {"delta"}
    assert final["type"] == "done"
    assert "".join(delta["text"] for delta in deltas) == final["text"] == "hello world"
    ids = [token for delta in deltas for token in delta["token_ids"]]
    assert ids == HELLO_IDS[: len(ids)]
    assert final["token_ids"] == HELLO_IDS


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"prompt": ""}, 400, "prompt"),
        ({}, 400, "prompt"),
        ({"prompt": "a", "n": 2}, 400, "n"),
        ({"prompt": "a", "prompt_logprobs": 1}, 400, "prompt_logprobs"),
        ({"prompt": "a", "odd": 1}, 400, "odd"),
        ({"prompt": "a", "stream": True, "stream_options": {"include_usage": True}}, 400, "stream_options"),
        ({"prompt": "a", "guided_regex": "("}, 400, "guided_regex"),
        ({"prompt": "a", "model": "other"}, 404, "model"),
    ],
)
def test_generate_refuses(server: LiveServer, fields: dict[str, Any], status: int, param: str) -> None:
    answer = server.http.post("/generate", json=fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


def test_a_socket_s_messages(server: LiveServer) -> None:
    with connect(socket_url(server)) as socket:
        socket.send(json.dumps({"type": "generate", "id": "a", "prompt": "hi", "max_tokens": 50}))
        messages = [json.loads(socket.recv(timeout=10))]
        while messages[-1]["type"] != "done":
            messages.append(json.loads(socket.recv(timeout=10)))
        *deltas, done = messages
        assert {message["type"] for message in deltas} == {"delta"}
        assert {message["id"] for message in messages} == {"a"}
        assert "".join(delta["text"] for delta in deltas) == done["text"] == "hello world"
        assert (done["token_ids"], done["finish_reason"]) == (HELLO_IDS, "stop")
        assert done["usage"]["completion_tokens"] == len(HELLO_IDS)
        # Any text is an id.
        socket.send(json.dumps({"type": "generate", "id": "", "prompt": "hi", "stream": False}))
        assert json.loads(socket.recv(timeout=10))["id"] == ""
        # The id is free again, and whole answers come in one message.
        socket.send(json.dumps({"type": "generate", "id": "a", "prompt": [1], "stream": False}))
        assert json.loads(socket.recv(timeout=10))["type"] == "done"


async def collect(socket: ClientConnection, ends: int) -> dict[str, list[dict[str, Any]]]:
    """Messages by id until so many requests have ended."""
    messages: dict[str, list[dict[str, Any]]] = {}
    while ends:
        message = json.loads(await asyncio.wait_for(socket.recv(), 10))
        messages.setdefault(message["id"], []).append(message)
        ends -= message["type"] != "delta"
    return messages


def test_many_requests_on_one_socket(server: LiveServer) -> None:
    async def talk() -> dict[str, list[dict[str, Any]]]:
        async with connect_async(socket_url(server)) as socket:
            for index in range(20):
                await socket.send(json.dumps({"type": "generate", "id": str(index), "prompt": "x" * (index + 1)}))
            return await collect(socket, 20)

    messages = asyncio.run(talk())
    assert len(messages) == 20
    for index, seen in messages.items():
        assert seen[-1]["text"] == "hello world"
        assert seen[-1]["usage"]["prompt_tokens"] == int(index) + 1


@pytest.mark.parametrize(
    ("message", "request_id", "param"),
    [
        ("{", None, None),
        ('{"type": "sing"}', None, "type"),
        ('{"type": "generate", "prompt": "a"}', None, "id"),
        ('{"type": "generate", "id": 5, "prompt": "a"}', None, "id"),
        ('{"type": "generate", "id": "r", "prompt": 5}', "r", "prompt"),
        ('{"type": "generate", "id": "r", "prompt": "a", "odd": 1}', "r", "odd"),
        ('{"type": "generate", "id": "r", "prompt": ""}', "r", "prompt"),
        ('{"type": "generate", "id": "r", "prompt": "a", "temperature": -1}', "r", "temperature"),
        ('{"type": "generate", "id": "r", "prompt": "a", "n": 2}', "r", "n"),
        ('{"type": "generate", "id": "r", "prompt": "a", "model": "other"}', "r", "model"),
        ('{"type": "generate", "id": "r", "prompt": "a", "store": true}', "r", "store"),
    ],
)
def test_a_bad_message_is_answered_and_the_socket_lives(
    server: LiveServer, message: str, request_id: str | None, param: str | None
) -> None:
    with connect(socket_url(server)) as socket:
        socket.send(message)
        answer = json.loads(socket.recv(timeout=10))
        assert (answer["type"], answer["id"], answer["error"]["param"]) == ("error", request_id, param)
        socket.send(json.dumps({"type": "generate", "id": "r", "prompt": "a", "stream": False}))
        assert json.loads(socket.recv(timeout=10))["text"] == "hello world"


def held() -> FakeEngine:
    return FakeEngine(hold_after=2)


def test_a_duplicate_id_is_an_error_and_the_first_goes_on() -> None:
    with live_server(held()) as server, connect(socket_url(server)) as socket:
        ask = json.dumps({"type": "generate", "id": "a", "prompt": "hi"})
        socket.send(ask)
        assert json.loads(socket.recv(timeout=10))["type"] == "delta"
        assert json.loads(socket.recv(timeout=10))["type"] == "delta"
        socket.send(ask)
        refused = json.loads(socket.recv(timeout=10))
        assert (refused["type"], refused["id"], refused["error"]["code"]) == ("error", "a", "duplicate_id")
        assert server.engine.aborted == []
        assert len(server.engine.submitted) == 1


def test_cancel_aborts_and_says_nothing_more() -> None:
    with live_server(held()) as server, connect(socket_url(server)) as socket:
        socket.send(json.dumps({"type": "generate", "id": "a", "prompt": "hi"}))
        socket.recv(timeout=10)
        socket.recv(timeout=10)
        socket.send('{"type": "cancel", "id": "unknown"}')
        socket.send('{"type": "cancel", "id": "a"}')
        wait_for(lambda: server.engine.aborted, "the abort")
        with pytest.raises(TimeoutError):
            socket.recv(timeout=0.2)
        server.engine.hold_after = None
        socket.send(json.dumps({"type": "generate", "id": "a", "prompt": "hi", "stream": False}))
        assert json.loads(socket.recv(timeout=10))["text"] == "hello world"


def test_closing_the_socket_aborts_its_requests() -> None:
    with live_server(held()) as server:
        with connect(socket_url(server)) as socket:
            for index in range(3):
                socket.send(json.dumps({"type": "generate", "id": str(index), "prompt": "hi"}))
            wait_for(lambda: len(server.engine.submitted) == 3, "three requests")
        wait_for(lambda: len(server.engine.aborted) == 3, "three aborts")


@pytest.mark.parametrize(
    ("refusal", "code"), [(Rejected("full", "queue_full"), "queue_full"), (EngineDead("gone"), "engine_dead")]
)
def test_refusals_come_as_errors(server: LiveServer, refusal: Any, code: str) -> None:
    server.engine.refuse = refusal
    try:
        with connect(socket_url(server)) as socket:
            socket.send(json.dumps({"type": "generate", "id": "a", "prompt": "hi"}))
            answer = json.loads(socket.recv(timeout=10))
            assert (answer["type"], answer["error"]["code"]) == ("error", code)
    finally:
        server.engine.refuse = None


def test_a_socket_needs_a_key(caplog: pytest.LogCaptureFixture) -> None:
    with live_server(api_keys=(ApiKey("secret"),)) as server:
        with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
            connect(socket_url(server))
        assert refused.value.response.status_code == 401
        assert refused.value.response.body.startswith(b'{"error":')
        with connect(socket_url(server), additional_headers={"authorization": "Bearer secret"}) as socket:
            socket.send(json.dumps({"type": "generate", "id": "a", "prompt": "hi", "stream": False}))
            assert json.loads(socket.recv(timeout=10))["type"] == "done"
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


def test_the_gate_counts_requests_not_sockets() -> None:
    gate = Gate(MetricsSource(MODEL), lambda: None)
    engine = held()
    with serve(gate) as url:
        address = url.replace("http", "ws") + "/ws/generate"
        with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
            connect(address)
        assert refused.value.response.status_code == 503
        gate.app = build_app(engine, TOKENIZER, ServerSettings(served_model_names=(MODEL,)))
        with connect(address) as socket:
            assert gate.open_requests == 0
            for index in range(2):
                socket.send(json.dumps({"type": "generate", "id": str(index), "prompt": "hi"}))
            wait_for(lambda: gate.open_requests == 2, "two open requests")
            socket.send('{"type": "cancel", "id": "0"}')
            wait_for(lambda: gate.open_requests == 1, "one open request")
        wait_for(lambda: gate.open_requests == 0, "none")


def test_tokenize_and_detokenize(server: LiveServer) -> None:
    answer = server.http.post("/tokenize", json={"prompt": "hello wor", "return_token_strs": True}).json()
    ids = TOKENIZER.encode("hello wor")
    assert answer == {"count": 2, "max_model_len": INFO.max_model_len, "tokens": ids, "token_strs": ["hello", " wor"]}
    assert server.http.post("/detokenize", json={"tokens": ids}).json() == {"prompt": "hello wor"}
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    shown = server.http.post("/detokenize", json={"tokens": server.http.post("/tokenize", json=chat).json()["tokens"]})
    assert shown.json()["prompt"] == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    bare = server.http.post("/tokenize", json={**chat, "add_generation_prompt": False}).json()
    assert TOKENIZER.decode(bare["tokens"], skip_special_tokens=False) == "<|im_start|>user\nhi<|im_end|>\n"


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": []}, "prompt"),
        ("/tokenize", {"prompt": 1}, "prompt"),
        ("/tokenize", {"prompt": "a", "odd": 1}, "odd"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt"),
        ("/tokenize", {"prompt": "a", "tools": []}, "tools"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [INFO.vocab_size]}, "tokens"),
        ("/detokenize", {"tokens": [1] * (INFO.max_model_len + 1)}, "tokens"),
    ],
)
def test_what_cannot_be_tokenized(server: LiveServer, path: str, fields: dict[str, Any], param: str) -> None:
    answer = server.http.post(path, json=fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_without_a_tokenizer_ids_still_generate() -> None:
    with live_server(tokenizer=None) as server:
        assert server.http.post("/generate", json={"prompt": [1, 2]}).json()["token_ids"] == HELLO_IDS
        assert server.http.post("/generate", json={"prompt": "a"}).status_code == 400
        for path, fields in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]})):
            assert server.http.post(path, json=fields).json()["error"]["code"] == "tokenizer_missing"
