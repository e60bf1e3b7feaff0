"""Every architecture against transformers: logits of whole sequences, computed in chunks over scattered pages."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.paged_decoding import PagedDecoding, uneven_chunks
from tests.support.tiny_models import TINY_MODELS, build, save
from thranite.layers import linear
from thranite.loader.checkpoint import load_model
from thranite.models.decoder import Decoder
from thranite.models.registry import load_spec

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Pair:
    reference: Any
    decoder: Decoder
    max_model_len: int | None

    def lengths(self) -> list[int]:
        longest = min(self.max_model_len or 90, 90)
        return [longest, longest // 2, longest - 7]


@pytest.fixture(scope="module", params=list(TINY_MODELS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    model = TINY_MODELS[request.param]
    reference = build(model)
    directory = save(model, reference, tmp_path_factory.mktemp(request.param) / "model")
    config = json.loads((directory / "config.json").read_text())
    spec = load_spec(config, max_model_len=model.max_model_len)
    assert spec.num_parameters == sum(p.numel() for p in reference.parameters())
    decoder = load_model(spec, directory, dtype=torch.float32, device=torch.device("cpu"))
    return Pair(reference, decoder, model.max_model_len)


def reference_logits(pair: Pair, tokens: list[int]) -> Tensor:
    """Padded to `max_model_len`, where the reference picks its rope by the sequence's length."""
    padded = tokens + [3] * ((pair.max_model_len or 0) - len(tokens))
    with torch.inference_mode():
        logits: Tensor = pair.reference(torch.tensor([padded]), use_cache=False).logits[0, : len(tokens)]
    return logits


def assert_same(actual: Tensor, expected: Tensor) -> None:
    difference = (actual.log_softmax(-1) - expected.log_softmax(-1)).abs().max().item()
    assert difference <= TOLERANCE, f"logprobs differ by {difference}"
    for position in (actual.argmax(-1) != expected.argmax(-1)).nonzero().flatten().tolist():
        best = expected[position].topk(2).values
        gap = (best[0] - best[1]).item()
        print(f"position {position}: the reference's best two logits are {gap} apart")
        assert gap <= TOLERANCE


@pytest.mark.parametrize("block_size", [1, 4, 16, 32])
def test_logits_equal_the_reference(pair: Pair, block_size: int) -> None:
    source = random.Random(block_size)
    lengths = pair.lengths()
    sequences = [[source.randrange(3, 199) for _ in range(length)] for length in lengths]
    paged = PagedDecoding(pair.decoder, block_size, seed=block_size)
    chunks = uneven_chunks(lengths, [length * 2 // 3 for length in lengths], seed=block_size)
    for actual, tokens in zip(paged.run(sequences, chunks), sequences, strict=True):
        assert_same(actual, reference_logits(pair, tokens))


def test_logits_equal_the_reference_where_products_add(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the residual stream: as for many rows, but where norms or biases are in the way."""
    monkeypatch.setattr(linear, "ADDING_ROWS", 1)
    length = pair.lengths()[0]
    tokens = random.Random(1).choices(range(3, 199), k=length)
    (actual,) = PagedDecoding(pair.decoder, 16).run([tokens], [[20, length - 20]])
    assert_same(actual, reference_logits(pair, tokens))


@pytest.mark.parametrize("rows", [[], [24], [59, 24, 24], [*range(40)], [*range(60)]], ids=len)
def test_rows_that_nobody_reads_are_left_out(pair: Pair, rows: list[int]) -> None:
    """Their keys and values are not: the next step finds all of them."""
    source = random.Random(7)
    first = [(slot, [source.randrange(3, 199) for _ in range(length)]) for slot, length in ((0, 25), (1, 35))]
    after = [(slot, [source.randrange(3, 199)]) for slot in (0, 1)]
    whole, part = (PagedDecoding(pair.decoder, 16, seed=3) for _ in range(2))
    expected = whole.logits(first)[rows]
    actual = part.logits(first, rows)
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(part.logits(after), whole.logits(after), rtol=1e-5, atol=1e-5)


def test_the_last_layer_computes_what_is_read(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    last, counts = pair.decoder._in_order[-1], []
    after_attention = last.after_attention

    def counted(x: Tensor, heads: Tensor) -> Tensor | None:
        counts.append(len(heads))
        return after_attention(x, heads)

    monkeypatch.setattr(last, "after_attention", counted)
    for rows in ([5], [*range(30)], [*range(31)], [], None):
        PagedDecoding(pair.decoder, 16).logits([(0, [3] * 40)], rows)
    assert counts == [1, 30, 40, 40]
