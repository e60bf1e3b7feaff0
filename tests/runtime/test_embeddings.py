"""Embeddings of a real decoder against transformers' hidden states, whole and in chunks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from thranite import LLM
from thranite.errors import InvalidRequest
from thranite.sampling_params import Pooling

LENGTH = 96
PROMPTS = [[5, 6, 7], list(range(1, 60)), [9], list(range(1, 40)), list(range(2, 2 + LENGTH))]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = Path(tmp_path_factory.mktemp("model"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=131, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=LENGTH, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).float().save_pretrained(path)
    return str(path)


def expected(directory: str, pooling: Pooling) -> list[list[float]]:
    model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    vectors = []
    with torch.inference_mode():
        for prompt in PROMPTS:
            states = model.model(torch.tensor([prompt])).last_hidden_state[0]
            vector = states.mean(0) if pooling == "mean" else states[-1]
            vectors.append((vector / vector.norm()).tolist())
    return vectors


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("budget", [16, 512], ids=["chunks", "whole"])
def test_vectors_are_transformers_s(directory: str, pooling: Pooling, budget: int) -> None:
    llm = LLM(directory, device="cpu", dtype="float32", skip_tokenizer_init=True, max_num_batched_tokens=budget)
    wanted = expected(directory, pooling)
    for _ in range(2):  # the second time, every prefix is in the cache
        for found, want in zip(llm.embed(PROMPTS, pooling=pooling), wanted, strict=True):
            assert found == pytest.approx(want, abs=1e-5)
    llm.generate(PROMPTS[:-1])
    assert llm.embed(PROMPTS[1], pooling=pooling)[0] == pytest.approx(wanted[1], abs=1e-5)
    with pytest.raises(InvalidRequest, match=r"context length is 96 tokens\. However, you requested 97 tokens\. "):
        llm.embed([[1] * (LENGTH + 1)])
    llm.close()


@pytest.mark.parametrize("pooling", ["MEAN", "cls", None])
def test_unknown_poolings_are_refused(directory: str, pooling: Any) -> None:
    llm = LLM(directory, device="cpu", dtype="float32", skip_tokenizer_init=True)
    with pytest.raises(InvalidRequest, match=f"^pooling must be one of mean, last; got {pooling!r}$") as refused:
        llm.embed(PROMPTS, pooling=pooling)
    assert refused.value.param == "pooling"
    llm.close()
