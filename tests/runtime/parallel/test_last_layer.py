"""The last layer over 1, 2 and 4 ranks goes on with the rows that are read alone, and these come out as all rows do.

Each of two ranks keeps its own rows of the stream alone, but of few; four keep all (`ThreadCommunicator`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.runtime.parallel.test_families import wide
from tests.support.families import load
from tests.support.paged_decoding import Chunk, PagedDecoding
from tests.support.thread_ranks import FEW_ROWS, ThreadCommunicator, run_ranks
from tests.support.tiny_models import TINY_MODELS, build, save
from thranite.models.decoder import Decoder

SOURCE = random.Random(7)
MANY: list[Chunk] = [(slot, SOURCE.choices(range(3, 199), k=length)) for slot, length in ((0, 25), (1, 35))]
FEW: list[Chunk] = [(2, SOURCE.choices(range(3, 199), k=FEW_ROWS))]
NEXT: list[Chunk] = [(slot, [SOURCE.randrange(3, 199)]) for slot in range(3)]
STEPS = [
    *((MANY, rows) for rows in ([59, 24, 24], [7], [*range(45)], [*range(46)], [], None)),
    (FEW, [FEW_ROWS - 1]),
]
COMPUTED = [3, 1, 45, 60, 60, 1]  # of a step of which nothing is read, nothing


@contextmanager
def counted(decoder: Decoder) -> Iterator[list[int]]:
    """The rows of each product that the last layer's MLP begins with."""
    gate_up, counts = decoder._in_order[-1].mlp.gate_up, []
    forward = gate_up.forward

    def counting(x: Tensor) -> Tensor:
        counts.append(len(x))
        return forward(x)

    gate_up.forward = counting  # type: ignore[method-assign]
    yield counts
    gate_up.forward = forward  # type: ignore[method-assign]


def on_rank(directory: Path, ranks: ThreadCommunicator) -> tuple[list[Tensor], list[int]]:
    """Of each step the logits, and those of a next one that finds all keys and values."""
    decoder, results = load(directory, ranks), []
    with counted(decoder) as counts:
        for chunks, rows in STEPS:
            results.append(PagedDecoding(decoder, 16).logits(chunks, rows))
    for rows in ([0], None):
        sequences = PagedDecoding(decoder, 16)
        sequences.logits([*MANY, *FEW], rows)
        results.append(sequences.logits(NEXT))
    return results, counts


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_the_last_layer_computes_what_is_read(family: str, size: int, tmp_path: Path) -> None:
    model = wide(TINY_MODELS[family], 2)
    directory = save(model, build(model), tmp_path)
    whole = load(directory)
    expected = [PagedDecoding(whole, 16).logits(chunks)[... if rows is None else rows] for chunks, rows in STEPS]
    for results, counts in run_ranks(size, lambda ranks: on_rank(directory, ranks)):
        assert counts == COMPUTED
        torch.testing.assert_close(results[: len(STEPS)], expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(*results[len(STEPS) :], rtol=1e-5, atol=1e-5)
