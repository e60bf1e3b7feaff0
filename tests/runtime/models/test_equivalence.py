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
