"""POST /v1/embeddings on a whole server, with the openai client."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.null_model import model_directory
from tests.support.running_server import RunningServer, running_server
from tests.support.waiting import wait_for

MODEL = "tiny"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    directory = Path(tmp_path_factory.mktemp("embeddings"))
    engine = {"model": model_directory(directory / "model"), "skip_tokenizer_init": False, "null_step_seconds": 0.0,
              "max_num_batched_tokens": 16, "max_num_seqs": 4, "max_model_len": 128}  # fmt: skip
    with running_server(directory, "null", engine, served_model_name=[MODEL], pooling="mean") as running:
        running.wait_ready()
        yield running


def embed(server: RunningServer, status: int = 200, **body: Any) -> Any:
    answer = server.api.post("/v1/embeddings", json={"model": MODEL, **body})
    assert answer.status_code == status, answer.text
    return answer.json()


def test_inputs_of_every_form(server: RunningServer) -> None:
    """The null device's vectors are made of the tokens alone, and long ones come in chunks."""
    text = "hello world " * 5
    ids = server.api.post("/tokenize", json={"prompt": text}).json()["tokens"]
    whole = embed(server, input=text)
    assert whole["usage"] == {"prompt_tokens": len(ids), "total_tokens": len(ids)}
    [item] = whole["data"]
    assert math.fsum(value * value for value in item["embedding"]) == pytest.approx(1.0)
    sums = [sum(token * factor % 97 for token in ids) for factor in range(1, 9)]
    length = math.hypot(*sums)
    assert item["embedding"] == pytest.approx([value / length for value in sums])
    for several in ([text, "x"], [ids, [5]]):
        found = embed(server, input=several)
        assert [entry["index"] for entry in found["data"]] == [0, 1]
        assert found["data"][0]["embedding"] == item["embedding"]
    assert embed(server, input=ids)["data"] == whole["data"]


def test_base64_is_what_the_openai_client_asks_for(server: RunningServer) -> None:
    with openai.OpenAI(base_url=f"{server.api_url}/v1", api_key="none", max_retries=0) as client:
        found = client.embeddings.create(model=MODEL, input=["a", "b"])
        assert found.data[1].embedding == pytest.approx(embed(server, input="b")["data"][0]["embedding"], abs=1e-6)
    raw = embed(server, input="b", encoding_format="base64")["data"][0]["embedding"]
    assert isinstance(raw, str)


def test_what_is_refused(server: RunningServer) -> None:
    for body, param in (
        ({"input": "a", "dimensions": 3}, "dimensions"),
        ({"input": []}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"input": [10**6]}, "input"),
        ({"input": [1] * 129}, "input"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": ["a"] * 2049}, "input"),
        ({}, "input"),
    ):
        assert embed(server, 400, **body)["error"]["param"] == param, body
    assert embed(server, input="a", dimensions=8)["data"]
    assert embed(server, input=[1] * 128)["usage"]["prompt_tokens"] == 128, "the model's whole length"
    wait_for(lambda: server.metric("thranite_kv_cache_usage_ratio") == 0, "nothing is held")
