"""How models are cut: sizes that divide them, and parts that make up the whole."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from tests.support.smollm2 import smollm2_dir
from tests.support.specs import layer_spec, model_spec
from thranite.errors import ConfigError
from thranite.models.partition import Cut, Rank, check_size, possible_sizes, rank_parameters, rank_spec, whole
from thranite.models.registry import load_spec
from thranite.models.spec import ModelSpec
from thranite.models.weights import Part, Target


def spec(heads: int, kv_heads: int, intermediate: int = 96, vocab: int = 199) -> ModelSpec:
    return model_spec(layer_spec(heads=heads, kv_heads=kv_heads, intermediate=intermediate), vocab=vocab)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "intermediate", "sizes"),
    [
        (8, 8, 96, [1, 2, 4, 8]),
        (8, 2, 96, [1, 2, 4, 8]),
        (8, 1, 96, [1, 2, 4, 8]),
        (9, 3, 96, [1, 3]),  # 9 does not divide the MLP
        (12, 4, 96, [1, 2, 4, 12]),  # 3 and 6 would tear KV heads apart
        (8, 8, 100, [1, 2, 4]),
        (7, 7, 96, [1]),
    ],
)
def test_possible_sizes(heads: int, kv_heads: int, intermediate: int, sizes: list[int]) -> None:
    model = spec(heads, kv_heads, intermediate)
    assert possible_sizes(model) == sizes
    for size in range(1, 14):
        if size in sizes:
            check_size(model, size)
        else:
            with pytest.raises(ConfigError, match=f"size {size}") as refused:
                rank_spec(model, size)
            assert str(refused.value.hint).endswith(": " + ", ".join(map(str, sizes)))


@pytest.mark.model
def test_smollm2_refuses_two_and_four() -> None:
    model = load_spec(json.loads((smollm2_dir() / "config.json").read_text()))
    assert possible_sizes(model) == [1, 3]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("total", [1, 2, 5, 8, 199, 200])
def test_vocabularies_of_any_size_are_cut(total: int, size: int) -> None:
    cuts = [Rank(index, size).vocabulary(total) for index in range(size)]
    owned = [token for cut in cuts for token in range(cut.first, cut.first + cut.size)]
    assert owned == list(range(total))


@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 1), (8, 2), (8, 8)])
@pytest.mark.parametrize("size", [2, 4])
def test_query_heads_stand_beside_their_kv_heads(heads: int, kv_heads: int, size: int) -> None:
    for index in range(size):
        rank = Rank(index, size)
        queries, keys = rank.even(heads * 16), rank.kv(kv_heads, 16)
        local = queries.size // keys.size  # query heads that share a KV head here
        for head in range(queries.size // 16):
            wanted = (queries.first // 16 + head) // (heads // kv_heads)
            assert keys.first // 16 + head // local == wanted


def test_parameters_of_the_ranks_add_up() -> None:
    model = spec(8, 8, vocab=200)
    norms = model.hidden_size * (2 * len(model.layers) + 1)
    split = model.num_parameters - norms
    assert rank_parameters(model, 4) == split // 4 + norms


def test_a_rank_reads_its_own_region_alone() -> None:
    """A part is a view: of a mapped file nothing else is touched."""
    tensor = torch.arange(12.0).view(3, 4)
    taken: list[Tensor] = []
    target = Target(
        (3, 4), (Part((Cut(1, 2, 3), Cut(2, 2, 4)), taken.append), Part((Cut(0, 1, 3), whole(4)), taken.append))
    )
    target.load(tensor)
    assert [part.tolist() for part in taken] == [[[6.0, 7.0], [10.0, 11.0]], [[0.0, 1.0, 2.0, 3.0]]]
    assert all(part.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr() for part in taken)
    assert target.share == pytest.approx(8 / 12)
