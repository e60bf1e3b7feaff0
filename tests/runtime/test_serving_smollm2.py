"""A real model behind the whole server: supervisor, server process, engine process, and the openai client in front."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.running_server import RunningServer, running_server
from tests.support.smollm2 import smollm2_dir
from tests.support.waiting import wait_for

pytestmark = pytest.mark.model

MODEL = "smollm2"
USER: Any = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    engine = {
        "model": str(smollm2_dir()),
        "device": "cpu",
        "skip_tokenizer_init": False,
        "max_model_len": 1024,
        "max_num_seqs": 8,
        "kv_cache_memory_bytes": 512 * 1024**2,
    }
    with running_server(Path(tmp_path_factory.mktemp("smollm2")), "null", engine, served_model_name=[MODEL]) as running:
        wait_for(lambda: running.probe("/readyz") == 200, "ready", 120)
        yield running


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.api_url}/v1", api_key="none", max_retries=0, timeout=120) as opened:
        yield opened


def chat(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(model=MODEL, messages=USER, temperature=0.0, max_tokens=24, **options)


def test_chat_answers_and_streams_the_same(client: openai.OpenAI) -> None:
    whole = chat(client)
    assert "Paris" in whole.choices[0].message.content
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_parallel_requests_get_what_each_gets_alone(client: openai.OpenAI) -> None:
    prompts = [f"Once upon a time in {place}, there" for place in ("Athens", "Oslo", "Lima", "Kyoto", "Cairo", "Riga")]

    def complete(prompt: str) -> str:
        answer = client.completions.create(model=MODEL, prompt=prompt, temperature=0.0, max_tokens=16)
        return answer.choices[0].text

    with ThreadPoolExecutor(len(prompts)) as pool:
        together = list(pool.map(complete, prompts))
    assert together == [complete(prompt) for prompt in prompts]


def test_a_client_that_leaves_frees_its_blocks(server: RunningServer, client: openai.OpenAI) -> None:
    stream = client.completions.create(
        model=MODEL, prompt="Count: 1 2 3", max_tokens=900, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    assert server.metric("thranite_requests_running") == 1
    assert server.metric("thranite_kv_cache_usage_ratio") > 0
    stream.close()
    left = time.monotonic()
    wait_for(lambda: server.metric("thranite_requests_running") == 0, "the request to end", 10)
    assert time.monotonic() - left < 3  # a second, or a step of a busy machine
    assert server.metric("thranite_kv_cache_usage_ratio") == 0
    assert server.metric('thranite_requests_finished_total{model_name="smollm2",reason="abort"}') == 1


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"n": 9}, "n"),
        ({"max_tokens": 5000}, None),
        ({"extra_body": {"best_of": 3}}, "best_of"),
        ({"extra_body": {"no_such_field": 1}}, "no_such_field"),
    ],
)
def test_bad_requests_name_the_field(client: openai.OpenAI, options: dict[str, Any], param: str | None) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=MODEL, prompt="Hello", **options)
    if param is not None:
        assert caught.value.param == param
