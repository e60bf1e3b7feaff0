"""On a GPU: the CPU's tokens, and no wait for the device between a draw and its result."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.sampling import Row, pack_mask, params, sample_rows
from thranite.runner.counter_rng import mix64, random_bits, row_keys
from thranite.runner.sampler import Sampler

pytestmark = pytest.mark.gpu
VOCAB = 9001


def make_rows() -> list[Row]:
    every: list[dict[str, object]] = [
        {"temperature": 0.0, "logprobs": 4},
        {},
        {"top_k": 30, "top_p": 0.9},
        {"top_p": 0.7},
        {"top_k": 1000, "min_p": 0.001},
        {"presence_penalty": 1.0, "repetition_penalty": 1.3},
        {"logit_bias": ((5, 3.0),), "bad_words": ((9,),)},
        {"allowed_token_ids": tuple(range(100, 200)), "logprobs": 2},
        {"min_tokens": 4, "eos_token_ids": (2,), "stop_token_ids": (3,)},
    ]
    rows = [Row(params(seed=i, **options), (1, 4, 4, 7), 2) for i, options in enumerate(every)]
    return [*rows, Row(params(seed=50), (1,), 1, mask=tuple(t % 3 == 0 for t in range(VOCAB)))]


def test_bits_are_the_cpus() -> None:
    keys = row_keys(mix64(np.arange(5, dtype=np.uint64)), np.zeros(5, np.uint64), np.arange(5, dtype=np.uint64))
    words = torch.from_numpy(keys.view(np.int64))
    ids = torch.arange(151_936, dtype=torch.int32)
    assert random_bits(words.cuda(), ids.cuda()).cpu().equal(random_bits(words, ids))


def test_tokens_are_the_cpus() -> None:
    rows = make_rows()
    logits = torch.randn(len(rows), VOCAB, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    slots = list(range(len(rows)))
    expected = sample_rows(Sampler(VOCAB, 16, torch.device("cpu")), logits, rows, slots)
    assert sample_rows(Sampler(VOCAB, 16, torch.device("cuda")), logits.cuda(), rows, slots) == expected


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
def test_sampling_never_waits_for_the_device() -> None:
    rows = make_rows()
    sampler = Sampler(VOCAB, 16, torch.device("cuda"))
    logits = torch.randn(len(rows), VOCAB, device="cuda")
    masks = {slot: pack_mask(row.mask) for slot, row in enumerate(rows) if row.mask is not None}
    slots, positions = list(range(len(rows))), [len(row.token_ids) for row in rows]
    try:
        torch.cuda.set_sync_debug_mode("error")
        sampler.start([row.start(slot) for slot, row in enumerate(rows)])
        sampled = sampler.sample(logits, slots, positions, masks)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    tokens, scores = sampled.result()
    assert len(tokens) == len(rows)
    assert set(scores) == {0, 7}
