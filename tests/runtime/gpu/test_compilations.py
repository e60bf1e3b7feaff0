"""No kernel is compiled once an engine is ready, whatever is asked of it: counted by Triton's own hook.

The same is proved without a GPU for every launch's arguments (tests/runtime/runner/test_cuda_specialisations.py).
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from thranite.bench.shapes import LLAMA_8B, QWEN3_06B
from thranite.llm import LLM
from thranite.sampling_params import SamplingParams
from thranite_kernels.compilations import Compilations

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

SHAPES = {"llama-8b": LLAMA_8B, "qwen3-0.6b": QWEN3_06B}
EDGES = [1, 2, *(count + change for count in (16, 32, 48, 64, 128, 512, 1024) for change in (-1, 0, 1))]
OPTIONS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.6},
    {"top_p": 0.9},
    {"top_k": 50, "logprobs": 0},
    {"min_p": 0.05, "logprobs": 20},
    {"top_p": 0.9, "top_k": 50, "min_p": 0.05, "repetition_penalty": 1.1, "seed": 3, "logprobs": 5},
    {"temperature": 0.0, "presence_penalty": 0.5, "frequency_penalty": 0.5},
    {"logit_bias": {5: 3.0}},
    {"top_p": 0.5, "allowed_token_ids": list(range(100))},
    {"min_tokens": 2, "stop_token_ids": [2], "ignore_eos": False},
    {"prompt_logprobs": 2},
    {"n": 4, "min_p": 0.1},
)  # fmt: skip


class Asked:
    """An engine of two layers with the real widths, and prompts that share no prefix."""

    def __init__(self, name: str, parent: Path, **options: Any) -> None:
        config = {**SHAPES[name], "num_hidden_layers": 2}
        parent.mkdir(exist_ok=True)
        (parent / "config.json").write_text(json.dumps(config))
        given: dict[str, Any] = {"load_format": "dummy", "skip_tokenizer_init": True, "gpu_memory_utilization": 0.5}
        self.llm = LLM(str(parent), dtype="bfloat16", **given, **options)
        self._rng = random.Random(0)

    def ids(self, length: int) -> dict[str, list[int]]:
        return {"prompt_token_ids": self._rng.choices(range(10, 100_000), k=length)}

    def run(self, lengths: Sequence[int], max_tokens: int = 3, **options: Any) -> None:
        params = SamplingParams(**{"ignore_eos": True, "max_tokens": max_tokens, "detokenize": False, **options})
        self.llm.generate([self.ids(length) for length in lengths], params)


@pytest.fixture(params=[*SHAPES])
def asked(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Asked]:
    made = Asked(request.param, tmp_path / "model", max_model_len=33_000, max_num_seqs=1024)
    yield made
    made.llm.close()


def test_nothing_is_compiled_after_ready(asked: Asked) -> None:
    with Compilations() as compiled:
        asked.run([32_768])
        asked.run([16_383, 16_384, 16_385])
        for length in EDGES:
            asked.run([length])
        for rows in EDGES:
            asked.run([1] * min(rows, 1024), max_tokens=2)
        for options in OPTIONS:
            asked.run([1], **options)
            asked.run([15, 16, 17, 513, 700], **options)
        asked.llm.embed([asked.ids(length) for length in (1, 16, 17, 600)], pooling="mean")
        asked.llm.embed([asked.ids(40)], pooling="last")
    assert compiled.kernels == []


def test_nothing_is_compiled_by_preemption(tmp_path: Path) -> None:
    made = Asked("qwen3-0.6b", tmp_path / "model", max_model_len=512, max_num_seqs=64, kv_cache_memory_bytes=24 * 2**20)
    with Compilations() as compiled:
        made.run([100] * 40, max_tokens=200, top_p=0.9)
    preemptions = made.llm.engine.stats().preemptions_total
    made.llm.close()
    assert preemptions > 0
    assert compiled.kernels == []
