"""A real model over three ranks (9 heads, 3 KV heads): the greedy tokens of one, in fp32."""

from __future__ import annotations

import re

import pytest
import torch

from tests.support.smollm2 import smollm2_dir
from thranite import LLM, SamplingParams, StructuredOutputsParams
from thranite.errors import ConfigError
from thranite.outputs import RequestOutput

pytestmark = pytest.mark.model
PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n",
    "List three facts about the sea.",
    "Once upon a time, " * 20,
]
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True, logprobs=1)
# A grammar's bitmasks are made on rank 0 after each token.
DATES = SamplingParams(
    temperature=1.0, seed=1, max_tokens=24, structured_outputs=StructuredOutputsParams(regex=r"\d{4}-\d{2}-\d{2}")
)


def outputs(size: int) -> list[RequestOutput]:
    llm = LLM(
        str(smollm2_dir()),
        device="cpu",
        dtype="float32",
        tensor_parallel_size=size,
        max_model_len=512,
        max_num_seqs=4,
        kv_cache_memory_bytes=2**26,
    )
    try:
        return llm.generate([*PROMPTS, "The date is"], [GREEDY] * len(PROMPTS) + [DATES])
    finally:
        llm.close()


def test_three_ranks_say_what_one_says() -> None:
    threads = torch.get_num_threads()
    one, three = outputs(1), outputs(3)
    assert torch.get_num_threads() == threads
    for want, got in zip(one, three, strict=True):
        assert got.outputs[0].text == want.outputs[0].text
        assert got.outputs[0].token_ids == want.outputs[0].token_ids
        for mine, theirs in zip(got.outputs[0].logprobs or (), want.outputs[0].logprobs or (), strict=True):
            assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-3)
    assert "Paris" in one[0].outputs[0].text
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", three[-1].outputs[0].text)


@pytest.mark.parametrize("size", [2, 4])
def test_other_sizes_are_refused(size: int) -> None:
    with pytest.raises(ConfigError, match="can be split into: 1, 3"):
        outputs(size)
