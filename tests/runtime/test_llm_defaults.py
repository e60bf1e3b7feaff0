"""`LLM` without sampling parameters: what the model's authors recommend, as the server has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.null_model import model_directory
from tests.support.rank_models import OPTIONS, rank_model
from thranite import LLM, SamplingParams
from thranite.errors import ConfigError

ASKED = [{"role": "user", "content": "hello"}]


def recommend(directory: Path, **sampling: Any) -> None:
    (directory / "generation_config.json").write_text(json.dumps(sampling))


def test_the_model_s_recommendation(tmp_path: Path) -> None:
    model = rank_model(tmp_path)
    recommend(tmp_path, top_k=1, temperature=0.8, max_new_tokens=5, eos_token_id=None)
    llm = LLM(model, device="cpu", **OPTIONS)
    assert llm.get_default_sampling_params() == SamplingParams(top_k=1, temperature=0.8, max_tokens=5)
    greedy = llm.generate([[5, 6], [7]], SamplingParams(temperature=0.0, max_tokens=5))
    for _ in range(3):  # each has other seeds
        found = llm.generate([[5, 6], [7]])
        assert [one.outputs[0].token_ids for one in found] == [one.outputs[0].token_ids for one in greedy]
    llm.close()


def test_it_can_be_left_out(tmp_path: Path) -> None:
    model = model_directory(tmp_path)
    recommend(tmp_path, max_new_tokens=5)
    for mode, tokens in (("auto", 5), ("none", 16)):
        options: dict[str, Any] = {"generation_config": mode}
        llm = LLM(model, device="null", **options)
        assert len(llm.generate("hello")[0].outputs[0].token_ids) == tokens
        assert len(llm.chat(ASKED)[0].outputs[0].token_ids) == tokens
        assert len(llm.generate("hello", SamplingParams(max_tokens=3))[0].outputs[0].token_ids) == 3
        llm.close()


def test_what_cannot_be_served_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    model = rank_model(tmp_path)
    recommend(tmp_path, top_p=7)
    with pytest.raises(ConfigError, match=r"generation_config\.json.*top_p.*\n.*--generation-config none"):
        LLM(model, device="cpu", **OPTIONS)
