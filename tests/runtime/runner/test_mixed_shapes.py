"""Which steps with prompts have graphs: sizes, room for rows, and when padding pays."""

from __future__ import annotations

from typing import Any

import pytest

from thranite.bench.shapes import LLAMA_8B, QWEN3_06B
from thranite.engine.kv_groups import plan_kv_layout
from thranite.engine.settings import EngineSettings
from thranite.models.partition import rank_spec
from thranite.models.registry import load_spec
from thranite.runner.mixed_shapes import layer_seconds, mixed_shapes, pays, ready_shapes

LLAMA = load_spec(LLAMA_8B, dtype="bfloat16", max_model_len=4096)
QWEN = load_spec(QWEN3_06B, dtype="bfloat16", max_model_len=4096)
SMALL = [32, *range(64, 1025, 64)]


def settings(**changes: Any) -> EngineSettings:
    fields: dict[str, Any] = {
        "layout": plan_kv_layout(LLAMA, 64, "bfloat16"), "num_blocks": 64, "vocab_size": 1000, "max_model_len": 4096,
        "max_num_seqs": 1024, "max_num_batched_tokens": 8192,
    }  # fmt: skip
    return EngineSettings(**{**fields, **changes})


def test_a_large_model_has_graphs_up_to_where_launching_is_hidden() -> None:
    shapes = mixed_shapes(settings(), LLAMA)
    assert [shape.tokens for shape in shapes] == [*SMALL, 1536]
    assert ready_shapes(shapes) == shapes
    halves = mixed_shapes(settings(), rank_spec(LLAMA, 2))
    assert [shape.tokens for shape in halves] == [*SMALL, 1536, 2048, 2560, 3072]
    assert [shape.tokens for shape in ready_shapes(halves)] == [*SMALL, 2048, 3072]


def test_a_small_model_has_graphs_up_to_the_token_budget() -> None:
    shapes = mixed_shapes(settings(), QWEN)
    assert [shape.tokens for shape in shapes] == [*SMALL, *range(1536, 8193, 512)]
    assert [shape.tokens for shape in ready_shapes(shapes)] == [*SMALL, 2048, 4096, 8192]
    odd = [shape.tokens for shape in mixed_shapes(settings(max_num_batched_tokens=5000), QWEN)]
    assert odd == [*SMALL, *range(1536, 5000, 512), 5000]


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({"max_num_batched_tokens": 7}, [7]),
        ({"max_num_batched_tokens": 100}, [32, 64, 100]),
        ({"max_num_batched_tokens": 1024}, SMALL),
        ({"max_num_batched_tokens": 1100}, [*SMALL, 1100]),
        ({"max_num_seqs": 2, "max_model_len": 50}, [32, 64, 100]),  # all that their sequences have
    ],
)
def test_no_graph_is_larger_than_a_step_can_be(changes: dict[str, Any], sizes: list[int]) -> None:
    shapes = mixed_shapes(settings(**changes), QWEN)
    assert [shape.tokens for shape in shapes] == sizes
    assert all(shape.decodes <= shape.tokens for shape in shapes)


def test_room_for_rows() -> None:
    room = {shape.tokens: (shape.decodes, shape.prompts) for shape in mixed_shapes(settings(), QWEN)}
    assert [room[size] for size in (32, 256, 1024, 2048, 8192)] == [
        (32, 8), (256, 8), (256, 32), (1024, 64), (1024, 128),
    ]  # fmt: skip
    few = mixed_shapes(settings(max_num_seqs=3), QWEN)
    assert {(shape.decodes, shape.prompts, shape.samples) for shape in few} == {(3, 3, 6)}


def test_the_largest_shape_has_the_most_room() -> None:
    """Its buffers and its memory are the others' too."""
    for spec in (LLAMA, QWEN):
        shapes = mixed_shapes(settings(), spec)
        assert all(shapes[-1].holds(shape) for shape in shapes)


def test_padding_pays_while_it_costs_less_than_launching() -> None:
    llama, qwen = layer_seconds(LLAMA), layer_seconds(QWEN)
    assert 1024 * llama == pytest.approx(0.64e-3, rel=0.01)
    assert pays(llama, 640, 10)  # 0.4 ms to launch a layer, 0.4 ms to compute it
    assert not pays(llama, 1536, 300)
    assert pays(llama, 1536, 1400)
    assert pays(qwen, 8192, 1)
