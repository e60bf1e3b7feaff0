"""Frequencies against transformers' own functions, for every scaling and both regimes of the length-dependent ones."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from thranite.errors import UnsupportedModel
from thranite.layers.rotary import rotary_table, rotate_, signed_tables
from thranite.models.registry import load_spec
from thranite.models.rope import rope_spec
from thranite.models.spec import RopeSpec

TRAINED, LIMIT, DIM = 4096, 16384, 64
FACTORS = {
    "long_factor": [1.0 + i / 7 for i in range(DIM // 2)],
    "short_factor": [1.0 + i / 99 for i in range(DIM // 2)],
}
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"factor": 3.0},
    "dynamic": {"factor": 4.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": TRAINED,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": TRAINED},
    "longrope": {**FACTORS, "original_max_position_embeddings": TRAINED},
}


def parameters(kind: str, theta: float = 500_000.0, **changes: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": theta, **SCALINGS[kind], **changes}


def expected(given: dict[str, Any], length: int | None) -> tuple[torch.Tensor, float]:
    config = LlamaConfig(
        hidden_size=DIM * 4, num_attention_heads=4, max_position_embeddings=LIMIT, rope_parameters=dict(given)
    )
    inv_freq, factor = ROPE_INIT_FUNCTIONS[given["rope_type"]](config, torch.device("cpu"), seq_len=length)
    return inv_freq, float(factor)


def assert_equal(spec: RopeSpec, reference: tuple[torch.Tensor, float]) -> None:
    inv_freq, factor = reference
    torch.testing.assert_close(torch.tensor(spec.inv_freq), inv_freq, rtol=3e-7, atol=0.0)
    assert spec.attention_factor == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("length", [None, 1000, TRAINED, TRAINED + 1, LIMIT, 4 * LIMIT])
@pytest.mark.parametrize("kind", list(SCALINGS))
def test_equals_transformers(kind: str, length: int | None) -> None:
    given = parameters(kind)
    assert_equal(rope_spec(given, DIM, LIMIT, length), expected(given, length or LIMIT))


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_factor": 0.7},
        {"beta_fast": 16.0, "beta_slow": 2.0},
        {"mscale": 0.7, "mscale_all_dim": 1.3},
        {"truncate": False},
        {"factor": 1.0},
    ],
)
def test_yarn_options(changes: dict[str, Any]) -> None:
    given = parameters("yarn", **changes)
    assert_equal(rope_spec(given, DIM, LIMIT, None), expected(given, None))


@pytest.mark.parametrize("changes", [{"attention_factor": 1.25}, {"factor": 2.0}, {"factor": 0.5}])
def test_longrope_options(changes: dict[str, Any]) -> None:
    given = parameters("longrope", **changes)
    assert_equal(rope_spec(given, DIM, LIMIT, LIMIT), expected(given, LIMIT))


def test_what_yarn_was_trained_by_says_nothing_about_frequencies() -> None:
    for finetuned in (True, False):
        given = parameters("yarn", finetuned=finetuned)
        assert_equal(rope_spec(given, DIM, LIMIT, None), expected(given, None))


@pytest.mark.parametrize("inner", [None, TRAINED // 2])
@pytest.mark.parametrize("kind", ["default", *SCALINGS])
def test_a_trained_length_beside_the_rope_is_for_the_types_that_use_it(kind: str, inner: int | None) -> None:
    scaling: dict[str, Any] = {"type": kind, **SCALINGS.get(kind, {})}
    scaled = scaling.pop("original_max_position_embeddings", None) is not None
    if scaled and inner is not None:  # the outer one wins
        scaling["original_max_position_embeddings"] = inner
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"], "hidden_size": DIM * 4, "num_attention_heads": 4,
        "max_position_embeddings": LIMIT, "rope_theta": 500_000.0, "rope_scaling": scaling,
        "original_max_position_embeddings": TRAINED,
    }  # fmt: skip
    reference: Any = LlamaConfig.from_dict(deepcopy(config))
    rotary: Any = LlamaRotaryEmbedding(reference)
    inv_freq, factor = rotary.inv_freq, rotary.attention_scaling
    if kind != "default":  # length matters
        inv_freq, factor = ROPE_INIT_FUNCTIONS[kind](reference, torch.device("cpu"), seq_len=LIMIT)
    assert reference.rope_parameters.get("original_max_position_embeddings") == (TRAINED if scaled else None)
    assert_equal(load_spec(config).ropes[0], (inv_freq, float(factor)))


@given(theta=st.floats(1e3, 1e7), factor=st.floats(1.0, 64.0), kind=st.sampled_from(["linear", "dynamic", "yarn"]))
def test_equals_transformers_anywhere(theta: float, factor: float, kind: str) -> None:
    given = parameters(kind, theta, factor=factor)
    assert_equal(rope_spec(given, DIM, LIMIT, 2 * LIMIT), expected(given, 2 * LIMIT))


def test_default_frequencies_are_bitwise_those_of_float32() -> None:
    spec = rope_spec({"rope_theta": 10_000.0}, 128, 4096, None)
    exact = 1.0 / (10_000.0 ** (torch.arange(0, 128, 2, dtype=torch.float) / 128))
    assert (torch.tensor(spec.inv_freq) - exact).abs().max() <= torch.finfo(torch.float32).eps


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rope_type": "mrope"}, "rope type 'mrope'"),
        ({"rope_type": "linear"}, "factor = None"),
        ({"rope_type": "linear", "factor": "8"}, "factor = '8'"),
        ({"rope_type": "default", "mrope_section": [16, 24, 24]}, "mrope_section"),
        ({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}, "must list 32 numbers"),
        ({"partial_rotary_factor": 0.55}, "an even number"),
    ],
)
def test_refuses_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        rope_spec(given, DIM, LIMIT, None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rotation_keeps_lengths_and_relative_angles(dtype: torch.dtype) -> None:
    spec = rope_spec({"partial_rotary_factor": 0.5}, DIM, LIMIT, None)
    heads = torch.randn(3, 1, DIM, dtype=torch.float64).expand(-1, 2, -1).contiguous().to(dtype)
    before = heads.clone()
    cos, sin = signed_tables(rotary_table(spec, torch.tensor([0, 7, 4000]), dtype))
    assert cos.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    rotate_(heads, cos, sin)
    assert heads.dtype == dtype
    assert torch.equal(heads[0], before[0])
    assert torch.equal(heads[..., DIM // 2 :], before[..., DIM // 2 :])
    loose = 1e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(heads.norm(dim=-1), before.norm(dim=-1), rtol=loose, atol=loose)
    angle = 7 * spec.inv_freq[1]
    x, y = before[1, 0, 1].item(), before[1, 0, 1 + DIM // 4].item()
    assert heads[1, 0, 1].item() == pytest.approx(x * math.cos(angle) - y * math.sin(angle), abs=loose)
