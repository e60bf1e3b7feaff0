"""Several real models on the CPU behind one port, one of them over two ranks: each answers as it does alone."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.supervisor.test_many_models import wait_phase
from tests.support.rank_models import rank_model, rank_pids
from tests.support.running_server import RunningServer, running_server
from tests.support.tiny_tokenizers import CHATML, byte_fallback, byte_level, save
from thranite import LLM, SamplingParams

OPTIONS: dict[str, Any] = {
    "device": "cpu", "load_format": "dummy", "max_num_seqs": 4, "block_size": 16, "max_model_len": 128,
    "max_num_batched_tokens": 64,
}  # fmt: skip
GREEDY = {"max_tokens": 12, "temperature": 0.0, "ignore_eos": True, "return_token_ids": True}
TEXT = "hello world"


def llama(directory: Path) -> str:
    save(byte_level(), directory, chat_template=CHATML)
    return rank_model(directory, vocab_size=268, max_position_embeddings=512)


def wider(directory: Path) -> str:
    """Another tokenizer, another template, other weights."""
    save(byte_fallback(), directory, chat_template="{% for m in messages %}<{{ m.content }}>{% endfor %}")
    return rank_model(directory, vocab_size=270, hidden_size=96, num_hidden_layers=3)


def complete(server: RunningServer, model: str) -> list[int]:
    answer = server.api.post("/v1/completions", json={"model": model, "prompt": TEXT, **GREEDY})
    assert answer.status_code == 200, answer.text
    ids: list[int] = answer.json()["choices"][0]["token_ids"]
    return ids


def alone(model: str) -> list[int]:
    llm = LLM(model=model, **OPTIONS)
    params = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
    return list(llm.generate([TEXT], params)[0].outputs[0].token_ids)


@pytest.mark.timeout(300)
def test_each_answers_as_it_does_alone(tmp_path: Path) -> None:
    first, second = llama(tmp_path / "first"), wider(tmp_path / "second")
    engine = {"model": first, "skip_tokenizer_init": False, **OPTIONS}
    options = "max_model_len=128&tensor_parallel_size=2&kv_cache_memory_bytes=4MiB"
    with running_server(
        tmp_path,
        "null",
        engine,
        served_model_name=["first"],
        add_model=[f"second={second}?{options}"],
        stall_timeout=30.0,
    ) as server:
        server.wait_ready()
        wait_phase(server, "second", "ready")
        assert complete(server, "first") == alone(first)
        assert complete(server, "second") == alone(second)
        lengths = {card["id"]: card["max_model_len"] for card in server.api.get("/v1/models").json()["data"]}
        assert lengths == {"first": 128, "second": 128}
        messages = [{"role": "user", "content": "hello"}]
        counts = [
            server.api.post("/tokenize", json={"model": model, "messages": messages}).json()["count"]
            for model in ("first", "second")
        ]
        assert counts[0] != counts[1]
        _check_a_lost_rank(server, alone(second))


def _check_a_lost_rank(server: RunningServer, expected: list[int]) -> None:
    """It ends its engine alone; the cause names it, and the model comes back."""
    first, second = server.pids_of("engine_process")
    [rank] = rank_pids(second)
    os.kill(rank, signal.SIGKILL)
    failed = wait_phase(server, "second", "failed")
    assert f"rank 1 (pid {rank}, cpu) was killed by SIGKILL" in failed["cause"]
    assert len(complete(server, "first")) == 12
    wait_phase(server, "second", "ready")
    assert complete(server, "second") == expected
    assert server.pids_of("engine_process")[0] == first
