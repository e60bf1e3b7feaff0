"""Numbers of callers: numpy's and others become Python's, and what is none is refused by its field's name."""

from __future__ import annotations

import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.rank_models import OPTIONS, rank_model
from thranite import LLM, SamplingParams
from thranite.config import EngineConfig
from thranite.errors import ConfigError, InvalidRequest

INTEGERS = ["n", "top_k", "seed", "max_tokens", "min_tokens", "logprobs", "prompt_logprobs", "truncate_prompt_tokens"]
FLOATS = ["temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"]
ONE: Any = np.int64(1)


def make(**given: Any) -> SamplingParams:
    return SamplingParams(**given)


def options(**given: Any) -> EngineConfig:
    return EngineConfig(**given)


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_become_plain(name: str) -> None:
    params = make(**{name: ONE})
    assert (getattr(params, name), type(getattr(params, name))) == (1, int)
    for wrong in (1.5, 1.0, "1", True, np.float32(1), [1]):
        with pytest.raises(InvalidRequest, match=f"^{name} must be an integer, got ") as refused:
            make(**{name: wrong})
        assert refused.value.param == name


@pytest.mark.parametrize("name", FLOATS)
def test_floats_become_plain(name: str) -> None:
    for given in (1, ONE, np.float32(1), Decimal(1)):
        params = make(**{name: given})
        assert (getattr(params, name), type(getattr(params, name))) == (1.0, float)
    for wrong in ("1", True, None, math.nan, np.float32("inf"), Decimal("nan"), Decimal("snan"), 10**400, 1j):
        with pytest.raises(InvalidRequest, match=f"^{name} must be a finite number, got ") as refused:
            make(**{name: wrong})
        assert refused.value.param == name


@pytest.mark.parametrize("name", ["allowed_token_ids", "stop_token_ids"])
def test_ids_become_plain(name: str) -> None:
    given = [5, 6]
    assert getattr(make(**{name: given}), name) is given
    for ids in (np.array(given), [ONE * 5, 6], iter(given)):
        made = getattr(make(**{name: ids}), name)
        assert made == (5, 6)
        assert {type(token) for token in made} == {int}
    for wrong in ([5, 5.5], "5", [True], 5):
        with pytest.raises(InvalidRequest, match=f"^{name} must ") as refused:
            make(**{name: wrong})
        assert refused.value.param == name


def test_biases_become_plain() -> None:
    made = make(logit_bias={ONE: np.float32(0.5), 2: 1}).logit_bias
    assert made == {1: 0.5, 2: 1.0}
    assert {(type(token), type(bias)) for token, bias in (made or {}).items()} == {(int, float)}
    for wrong in ({5.5: 1.0}, {"5": 1.0}, {5: "1"}, {5: True}, [(5, 1.0)]):
        with pytest.raises(InvalidRequest, match=r"^logit_bias must map ") as refused:
            make(logit_bias=wrong)
        assert refused.value.param == "logit_bias"
    with pytest.raises(InvalidRequest, match=r"^logit_bias of token 5 must lie between -100 and 100, got nan"):
        make(logit_bias={5: math.nan})


def test_options_become_plain() -> None:
    config = options(model="m", seed=ONE, max_num_seqs=ONE)
    assert (type(config.seed), type(config.max_num_seqs)) == (int, int)
    for name in ("seed", "max_model_len"):
        for wrong in (1.5, "1", True):
            with pytest.raises(ConfigError, match=f"^--{name.replace('_', '-')} must be an integer, got {wrong!r}"):
                options(model="m", **{name: wrong})


def test_numpy_seeds_draw_as_plain_ones(tmp_path: Path) -> None:
    llm = LLM(rank_model(tmp_path), device="cpu", seed=ONE, **OPTIONS)
    for seed in (None, 3, -3):
        given = None if seed is None else np.int64(seed)
        [one, other] = llm.generate([[5, 6]] * 2, [make(seed=given), make(seed=seed)])
        assert (one.outputs[0].token_ids == other.outputs[0].token_ids) == (seed is not None)
    llm.close()


def test_an_engine_s_fractions_are_python_s_own() -> None:
    made = options(model="m", gpu_memory_utilization=np.float32(0.5), prompt_time_ratio=2)
    assert (type(made.gpu_memory_utilization), type(made.prompt_time_ratio)) == (float, float)
    for name in ("gpu_memory_utilization", "null_step_seconds", "target_inter_token_latency_ms"):
        with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} must be a number, got '0.5'"):
            options(model="m", **{name: "0.5"})
