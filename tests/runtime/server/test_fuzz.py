"""Whatever clients send or however they leave: no 500, and nothing stays behind.

THRANITE_FUZZ_BODIES sets how many bodies are tried (`make fuzz`: 10,000).
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from tests.support.fuzz import fuzzed
from tests.support.null_model import model_directory
from tests.support.running_server import RunningServer, running_server
from tests.support.tool_chats import HERMES, TOOLS
from tests.support.waiting import wait_for

BODIES = int(os.environ.get("THRANITE_FUZZ_BODIES", "400"))
CLIENTS = 16
MODEL = "tiny"
USER = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
GOOD: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"model": MODEL, "messages": USER, "tools": TOOLS, "n": 2, "max_tokens": 8}),
    ("/v1/chat/completions", {"model": MODEL, "messages": USER, "stream": True, "logprobs": True, "max_tokens": 8}),
    ("/v1/chat/completions", {"model": MODEL, "messages": USER, "max_tokens": 8, "stop": "a", "logit_bias": {"5": 1}}),
    ("/v1/completions", {"model": MODEL, "prompt": ["a", "b"], "logprobs": 1, "echo": True, "max_tokens": 8}),
    ("/v1/completions", {"model": MODEL, "prompt": [5, 6, 7], "stream": True, "max_tokens": 8, "guided_json": SCHEMA}),
    ("/v1/responses", {"model": MODEL, "input": "hi", "max_output_tokens": 16}),
    ("/v1/messages", {"model": MODEL, "max_tokens": 9, "messages": USER, "system": "be brief"}),
    ("/v1/messages/count_tokens", {"model": MODEL, "messages": USER}),
    ("/v1/embeddings", {"model": MODEL, "input": ["a", "b"], "encoding_format": "base64"}),
    ("/generate", {"prompt": "a", "guided_choice": ["x", "y"]}),
    ("/tokenize", {"prompt": "a", "return_token_strs": True}),
    ("/detokenize", {"tokens": [1, 2]}),
]  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    directory = Path(tmp_path_factory.mktemp("fuzz"))
    template = directory / "template.jinja"
    template.write_text(HERMES)
    engine = {
        "model": model_directory(directory / "model"),
        "skip_tokenizer_init": False,
        "null_step_seconds": 0.0005,
        "max_model_len": 256,
        "max_num_seqs": 8,
    }
    with running_server(directory, "null", engine, served_model_name=[MODEL], chat_template=str(template),
                        max_body_bytes=2**20, client_timeout=5.0) as running:  # fmt: skip
        running.wait_ready()
        yield running


def left_behind(server: RunningServer) -> dict[str, float]:
    """What requests hold; all of it must be 0 once none is open."""
    names = ("requests_waiting", "requests_running", "kv_cache_usage_ratio", "waiting_tokens")
    held = {name: server.metric(f"thranite_{name}") for name in names}
    held["open"] = server.admin.get("/drain").json()["open_requests"]
    return {name: value for name, value in held.items() if value}


def assert_clean(server: RunningServer, files: dict[str, int]) -> None:
    """Nothing is held; the idle engine has proved its pages and slots; sockets and files are those of before."""
    wait_for(lambda: not left_behind(server), "everything is given back")
    time.sleep(0.7)  # an idle engine checks its integrity after 0.5 s, and ends if it fails
    assert server.probe("/readyz") == 200, server.log()
    wait_for(lambda: descriptors(server) <= files, f"no more open files than {files}, there are {descriptors(server)}")


def descriptors(server: RunningServer) -> Files:
    counts = {"engine": server.engine_pid(), "server": server.server_pid()}
    return Files({name: len(list(Path(f"/proc/{pid}/fd").iterdir())) for name, pid in counts.items()})


class Files(dict[str, int]):
    """Open files by process; ordered when no process has more."""

    def __le__(self, other: dict[str, int]) -> bool:
        return all(count <= other[name] for name, count in self.items())


def settled(server: RunningServer) -> Files:
    """The open files when no client is connected."""
    wait_for(lambda: not left_behind(server), "earlier requests end")
    server.api.close()
    server.api = httpx.Client(base_url=server.api_url)
    last = descriptors(server)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        time.sleep(0.3)
        now = descriptors(server)
        if now == last:
            break
        last = now
    return last


def test_fuzzed_bodies(server: RunningServer) -> None:
    files = settled(server)
    dice = random.Random(BODIES)
    cases = [(path, fuzzed(good, dice)) for _ in range(BODIES // len(GOOD) + 1) for path, good in GOOD][:BODIES]
    statuses = asyncio.run(_send_all(server.api_url, cases))
    assert set(statuses) <= {200, 400, 404, 408, 413, 422, 429, 504}, statuses
    assert statuses[200] > BODIES // 50, statuses
    assert statuses[400] > BODIES // 3, statuses
    assert "Traceback" not in server.log()
    assert_clean(server, files)


async def _send_all(url: str, cases: list[tuple[str, bytes]]) -> Counter[int]:
    statuses: Counter[int] = Counter()
    queue = iter(cases)

    async def client() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            for path, body in queue:
                answer = await http.post(path, content=body, headers={"content-type": "application/json"})
                statuses[answer.status_code] += 1
                assert answer.status_code < 500, (path, body[:2000], answer.text[:500])
                if answer.status_code >= 400:
                    _check_error(path, answer, body)

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return statuses


def _check_error(path: str, answer: httpx.Response, body: bytes) -> None:
    """Errors have their shape, say something, and are no dump of what came."""
    error = answer.json()["error"]
    assert error["message"], (path, body[:500])
    assert len(answer.content) < 20_000, (path, body[:500])
    assert "Traceback" not in answer.text


# --- clients that leave


def _head(path: str, length: int) -> bytes:
    return f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n".encode()


STREAM: dict[str, Any] = {"model": MODEL, "prompt": "x" * 60, "max_tokens": 150, "ignore_eos": True, "stream": True}
WHOLE = {**STREAM, "stream": False}


@pytest.mark.parametrize("stage", ["connected", "half a head", "half a body", "whole request", "first event", "later"])
def test_clients_that_leave_at_every_stage(server: RunningServer, stage: str) -> None:
    """Twelve at a time, so that some are running and some are waiting for one of eight slots."""
    files = settled(server)
    for body in (STREAM, WHOLE):
        leave(server, stage, body)
        wait_for(lambda: not left_behind(server), f"everything of {body} is given back")
    assert_clean(server, files)


def leave(server: RunningServer, stage: str, body: dict[str, Any]) -> None:
    """Ask twelve times for `body`, up to `stage`."""
    content = json.dumps(body).encode()
    request = _head("/v1/completions", len(content)) + content
    sent = {"connected": 0, "half a head": 20, "half a body": len(request) - 30}.get(stage, len(request))
    clients = [socket.create_connection(("127.0.0.1", int(server.api_url.rsplit(":", 1)[1]))) for _ in range(12)]
    for client in clients:
        client.sendall(request[:sent])
    for client in clients[: 8 if stage in ("first event", "later") and body is STREAM else 0]:
        client.settimeout(20)
        assert client.recv(100).startswith(b"HTTP/1.1 200")
    if stage == "later":
        time.sleep(0.03)
    for number, client in enumerate(clients):
        if number % 2:  # one half with a reset, the other with an orderly end
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()


def test_sockets_that_close_with_requests_open(server: RunningServer) -> None:
    files = settled(server)
    for _ in range(5):
        with connect(server.api_url.replace("http", "ws") + "/ws/generate", close_timeout=0.2) as websocket:
            for name in range(10):
                ask = {"type": "generate", "id": str(name), "prompt": "x", "max_tokens": 150, "ignore_eos": True}
                websocket.send(json.dumps(ask))
            websocket.recv(timeout=20)
    assert_clean(server, files)
