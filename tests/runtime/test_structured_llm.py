"""Structured output in this process: a tiny model of random weights, the real sampler, on the CPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.grammar_engine import assert_valid
from tests.support.tiny_tokenizers import byte_level, save
from thranite import LLM, SamplingParams, StructuredOutputsParams

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 288, "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "torch_dtype": "float32",
}  # fmt: skip
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "ok": {"type": "boolean"}},
    "required": ["name", "ok"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    directory = save(byte_level(), Path(tmp_path_factory.mktemp("model")))
    eos = byte_level().token_to_id("<|eos|>")
    (directory / "config.json").write_text(json.dumps({**CONFIG, "eos_token_id": eos}))
    made = LLM(model=str(directory), load_format="dummy", device="cpu", max_num_seqs=8, max_model_len=512)
    yield made
    made.close()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_random_weights_write_valid_json(llm: LLM, temperature: float) -> None:
    wanted = StructuredOutputsParams(json=SCHEMA, disable_any_whitespace=True)
    params = SamplingParams(max_tokens=200, temperature=temperature, seed=1, structured_outputs=wanted, n=3)
    plain = SamplingParams(max_tokens=30, temperature=temperature, seed=2, ignore_eos=True)
    chosen = SamplingParams(
        max_tokens=9,
        temperature=temperature,
        min_tokens=8,
        structured_outputs=StructuredOutputsParams(choice=["on", "off"]),
    )
    alone = llm.generate("hello", plain)[0].outputs[0].token_ids
    first, second, third = llm.generate(["one", "hello", "three"], [params, plain, chosen])
    for sample in first.outputs:
        assert sample.finish_reason == "stop"
        assert_valid(sample.text, SCHEMA)
    assert second.outputs[0].token_ids == alone
    assert third.outputs[0].text in ("on", "off")
