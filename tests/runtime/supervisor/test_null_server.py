"""The real engine on the null device behind the real server: what load tests and the operator's tests run."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.support.null_model import CONFIG, model_directory
from tests.support.running_server import RunningServer, running_server
from tests.support.waiting import wait_for
from thranite.errors import ExitCode


def test_chat_on_the_null_device(tmp_path: Path) -> None:
    engine = {
        "model": model_directory(tmp_path / "model"),
        "skip_tokenizer_init": False,
        "null_step_seconds": 0.01,
        "null_prompt_token_seconds": 0.001,
        "max_num_seqs": 4,
    }
    with running_server(tmp_path, "null", engine, served_model_name=["tiny"], generation_config="auto") as server:
        server.wait_ready()
        chat = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "seed": 3, "temperature": 0.0}
        answers = [
            server.api.post("/v1/chat/completions", json={**chat, "max_tokens": 20, "ignore_eos": True}).json()
            for _ in range(2)
        ]
        texts = [answer["choices"][0]["message"]["content"] for answer in answers]
        assert texts[0] == texts[1] != ""
        assert answers[0]["usage"]["completion_tokens"] == 20
        _check_queue(server, chat)
        _check_deadlines(server, chat)
        assert "libtorch" not in Path(f"/proc/{server.engine_pid()}/maps").read_text()
        assert "libtorch" not in Path(f"/proc/{server.server_pid()}/maps").read_text()
        server.process.terminate()
        assert server.exit_code() == ExitCode.OK


def _check_queue(server: RunningServer, chat: dict[str, Any]) -> None:
    """Six requests on four slots: two wait, and the figures say so."""
    long = {**chat, "max_tokens": 150, "ignore_eos": True}
    began = time.monotonic()
    with ThreadPoolExecutor(6) as pool:
        done = [pool.submit(server.api.post, "/v1/chat/completions", json=long) for _ in range(6)]
        wait_for(lambda: server.metric("thranite_requests_waiting") == 2, "two wait")
        assert server.metric("vllm:num_requests_running") == 4
        assert server.metric("thranite_oldest_waiting_seconds") > 0
        assert server.metric("thranite_waiting_tokens") > 0
        assert 0 < server.metric("thranite_kv_cache_usage_ratio") < 1
        assert all(answer.result().json()["usage"]["completion_tokens"] == 150 for answer in done)
    assert time.monotonic() - began >= 2 * 150 * 0.01
    assert server.metric("thranite_kv_cache_usage_ratio") == 0
    assert server.metric("thranite_oldest_waiting_seconds") == 0


def _check_deadlines(server: RunningServer, chat: dict[str, Any]) -> None:
    """One that passes in the queue is a 504, streamed or not; one that passes on the way is the last event."""
    body = {**chat, "max_tokens": 150, "ignore_eos": True}
    with ThreadPoolExecutor(4) as pool:
        done = [pool.submit(server.api.post, "/v1/chat/completions", json=body) for _ in range(4)]
        wait_for(lambda: server.metric("thranite_requests_running") == 4, "every slot is taken")
        for stream in (False, True):
            late = server.api.post(
                "/v1/chat/completions", json={**body, "stream": stream}, headers={"x-request-timeout": "0.2"}
            )
            assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
        assert all(answer.result().status_code == 200 for answer in done)
    begun = server.api.post("/v1/chat/completions", json={**body, "stream": True, "timeout": 0.3})
    assert begun.status_code == 200
    events = begun.text.removesuffix("\n\n").split("\n\n")
    assert len(events) > 10
    assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "timeout"


def test_a_model_that_cannot_be_served(tmp_path: Path) -> None:
    model = Path(model_directory(tmp_path / "model"))
    (model / "config.json").write_text(json.dumps({**CONFIG, "architectures": ["NoSuchModel"]}))
    with running_server(tmp_path, "null", {"model": str(model)}) as server:
        assert server.exit_code() == ExitCode.UNSUPPORTED_MODEL
        assert "NoSuchModel" in server.termination_log()
