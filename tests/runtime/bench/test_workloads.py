"""The workloads are the reference's, exactly."""

from __future__ import annotations

import dataclasses
import random

import pytest

from thranite.bench.floors import VLLM, floor_seconds, step_bytes
from thranite.bench.shapes import SHAPES
from thranite.bench.workloads import WORKLOADS
from thranite.models.registry import load_spec

TOTALS = {
    "mixed": (256, 148_194, 140_797),
    "mixed1k": (1024, 572_556, 573_797),
    "prefill": (256, 256 * 2048, 256 * 32),
    "decode1": (1, 128, 256),
    "decode64": (64, 64 * 128, 64 * 256),
    "decode64-options": (64, 64 * 128, 64 * 256),
    "long": (16, 256_000, 1024),
}


def test_totals() -> None:
    found = {name: (w.count, w.prompt_tokens, w.output_tokens) for name, w in WORKLOADS.items()}
    assert found == TOTALS


@pytest.mark.parametrize("name", ["mixed", "decode64"])
def test_ids_are_drawn_by_workload_and_run_and_lengths_are_not(name: str) -> None:
    first, second = (WORKLOADS[name].requests(run, vocab_size=128_256) for run in (0, 1))
    assert [len(r.prompt_token_ids) for r in first] == [len(r.prompt_token_ids) for r in second]
    assert first[0].prompt_token_ids != second[0].prompt_token_ids
    text = random.Random(f"{name}/1")
    assert [r.prompt_token_ids for r in second] == [
        text.choices(range(10, 100_000), k=len(r.prompt_token_ids)) for r in second
    ]
    assert [(len(r.prompt_token_ids), r.output_tokens) for r in first] == list(WORKLOADS[name].lengths)


def test_ids_stay_inside_a_small_vocabulary() -> None:
    ids = WORKLOADS["decode64"].requests(0, vocab_size=50)
    assert {token for r in ids for token in r.prompt_token_ids} == set(range(10, 50))


def test_shapes_have_the_published_sizes() -> None:
    llama, qwen = (load_spec(SHAPES[name]) for name in ("llama-8b", "qwen3-0.6b"))
    assert (llama.num_parameters, qwen.num_parameters) == (8_030_261_248, 596_049_920)
    assert round(step_bytes(llama) / 1e9, 1) == 15.0
    assert qwen.tied_embeddings
    assert qwen.layers[0].qk_norm
    assert not llama.layers[0].qk_norm


@pytest.mark.parametrize(
    ("shape", "workload", "output_rate"),
    [
        ("llama-8b", "mixed", 13_812),
        ("llama-8b", "mixed1k", 19_400),
        ("qwen3-0.6b", "mixed", 35_400),
        ("qwen3-0.6b", "mixed1k", 38_500),
        ("llama-8b", "decode1", 1e3 / 3.49),
        ("llama-8b", "decode64", 64e3 / 4.6),
    ],
)
def test_floors_agree_with_the_reference_arithmetic(shape: str, workload: str, output_rate: float) -> None:
    work = WORKLOADS[workload]
    assert work.output_tokens / floor_seconds(load_spec(SHAPES[shape]), work) == pytest.approx(output_rate, rel=0.02)


def test_a_window_bounds_what_is_read() -> None:
    spec = load_spec(SHAPES["qwen3-0.6b"])
    narrow = dataclasses.replace(spec, layers=tuple(dataclasses.replace(layer, window=100) for layer in spec.layers))
    work = WORKLOADS["decode1"]  # 256 outputs, each of which sees 100 of at least 128 keys
    saved = sum(position + 1 - 100 for position in range(128, 384)) * 28 * 2 * 8 * 128 * 2 / 4.3e12
    prompt_saved = sum(max(position + 1 - 100, 0) for position in range(128)) * 28 * 4 * 16 * 128 / 780e12
    assert floor_seconds(spec, work) - floor_seconds(narrow, work) == pytest.approx(saved + prompt_saved)


def test_nothing_was_measured_below_its_floor() -> None:
    for (gpus, shape, name), figure in VLLM.items():
        work = WORKLOADS[name]
        seconds = {
            "output tok/s": work.output_tokens / figure,
            "total tok/s": (work.prompt_tokens + work.output_tokens) / figure,
            "ms/step": figure * work.longest_output / 1e3,
        }[work.metric]
        assert seconds > floor_seconds(load_spec(SHAPES[shape]), work, gpus)
