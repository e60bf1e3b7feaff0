"""The GPU's sampler against the CPU's, step by step: in Triton's interpreter, and on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.sampling import Row, pack_mask, params
from thranite.request import TokenLogprobs
from thranite.runner.cuda_sampler import CudaSampler
from thranite.runner.sampler import Sampler

INTERPRETING = os.environ.get("TRITON_INTERPRET", "0") == "1"
SLOTS = 24
STEPS = 3

EVERY: list[dict[str, Any]] = [
    {"temperature": 0.0, "logprobs": 5, "repetition_penalty": 1.3},
    {},
    {"temperature": 0.7, "top_k": 30, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.1, "logprobs": 5},
    {"top_p": 0.7, "logprobs": 0},
    {"top_k": 3, "frequency_penalty": 0.4, "presence_penalty": -0.3, "logprobs": 20},
    {"presence_penalty": 1.0, "repetition_penalty": 0.8},
    {"logit_bias": ((5, 3.0), (6, -4.0)), "bad_words": ((9,), (1, 2))},
    {"allowed_token_ids": tuple(range(30, 60)), "logprobs": 2, "temperature": 0.0},
    {"min_tokens": 5, "eos_token_ids": (2,), "stop_token_ids": (3, 33), "logit_bias": ((2, 30.0), (33, 30.0))},
    {"min_tokens": 9, "eos_token_ids": (35,), "allowed_token_ids": (35,)},
    {"temperature": 0.0, "min_tokens": 4, "eos_token_ids": (11,), "logit_bias": ((11, 50.0),), "logprobs": 1},
    {"min_p": 0.2},
]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cpu" and not INTERPRETING:
        pytest.skip("needs TRITON_INTERPRET=1; the last test runs these in a process of their own")
    return torch.device(request.param)


class Pair:
    """The same sequences in the CPU's sampler and in the GPU's."""

    def __init__(self, vocab: int, device: torch.device, dtype: torch.dtype) -> None:
        self._vocab, self._device, self._dtype = vocab, device, dtype
        self._last = torch.full((SLOTS,), -1, dtype=torch.int32, device=device)
        self._cpu = Sampler(vocab, SLOTS, torch.device("cpu"))
        self._gpu = CudaSampler(vocab, SLOTS, device, self._last)
        self._random = torch.Generator().manual_seed(vocab)
        self.lengths: dict[int, int] = {}

    def start(self, rows: dict[int, Row]) -> None:
        for sampler in (self._cpu, self._gpu):
            sampler.start([row.start(slot) for slot, row in rows.items()])
        self.lengths |= {slot: len(row.token_ids) for slot, row in rows.items()}

    def step(self, slots: list[int], masks: dict[int, bytes]) -> None:
        """Rounded logits make many ties."""
        logits = (torch.randn(len(slots), self._vocab, generator=self._random) * 3).round(decimals=2).to(self._dtype)
        positions = [self.lengths[slot] for slot in slots]
        tokens, scores = self._cpu.sample(logits.float().clone(), slots, positions, masks).result()
        numbers = torch.tensor([slots, positions], dtype=torch.int32, device=self._device)
        mine = logits.to(self._device, copy=True)
        lengths = np.array([self.lengths.get(slot, 0) for slot in range(SLOTS)])
        found = self._gpu.draw(mine, (slots, lengths), numbers[0], numbers[1], masks)
        assert mine.cpu().equal(logits)
        found_tokens, found_scores = found.result()
        assert found_tokens == tokens
        assert self._last[slots].tolist() == [token for (token,) in tokens]
        assert set(found_scores) == set(scores)
        assert all(close(found_scores[row][0], score) for row, (score,) in scores.items())
        for slot in slots:
            self.lengths[slot] += 1


def close(found: TokenLogprobs, wanted: TokenLogprobs) -> bool:
    same = (found.token_id, found.rank) == (wanted.token_id, wanted.rank)
    ids = [token for token, _ in found.top] == [token for token, _ in wanted.top]
    pairs = zip((found.logprob, *dict(found.top).values()), (wanted.logprob, *dict(wanted.top).values()), strict=True)
    return same and ids and all(abs(one - other) < 2e-5 for one, other in pairs)


def _masks(slots: list[int], vocab: int) -> dict[int, bytes]:
    """Slot 1's own, and one for slot 8 that leaves only a token which is banned so far."""
    masks = {1: pack_mask([token % 3 == 0 for token in range(vocab)]), 8: pack_mask([t == 3 for t in range(vocab)])}
    return {slot: mask for slot, mask in masks.items() if slot in slots}


@pytest.mark.parametrize(("vocab", "dtype"), [(70, torch.float32), (5003, torch.float16), (9001, torch.float32)])
def test_tokens_and_scores_are_the_cpus(device: torch.device, vocab: int, dtype: torch.dtype) -> None:
    """Steps of the same rows, of others, with masks and without; counts and minimal lengths advance."""
    pair = Pair(vocab, device, dtype)
    pair.start({slot: Row(params(seed=slot, **p), (1, 4, 4, 7), 2) for slot, p in enumerate(EVERY)})
    everyone = list(range(len(EVERY)))
    for step in range(STEPS):
        pair.step(everyone, _masks(everyone, vocab) if step == 1 else {})
    pair.step([5, 2, 8], {})
    pair.step([8, 1], _masks([8, 1], vocab))


def test_a_slot_forgets_its_last_sequence(device: torch.device) -> None:
    """New owners with other options, one after the other, while the rest run on."""
    pair = Pair(70, device, torch.float32)
    slots = [3, 20, 7]
    for turn in range(len(EVERY)):
        rows = {slot: Row(params(seed=slot + turn, **EVERY[(turn + i) % len(EVERY)]), (1, 4, 4), 3, turn)
                for i, slot in enumerate(slots) if turn == 0 or i == turn % 3}  # fmt: skip
        pair.start(rows)
        pair.step(slots, {})
        pair.step(slots, {})


def test_short_masks_are_refused(device: torch.device) -> None:
    pair = Pair(70, device, torch.float32)
    pair.start({0: Row(params(), (1,), 1)})
    with pytest.raises(ValueError, match="a bitmask has 8 bytes; this vocabulary needs 12"):
        pair._gpu.draw(torch.zeros(1, 70, device=device), ([0], np.array([1])), *_ints(device), {0: bytes(8)})


def _ints(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(1, dtype=torch.int32, device=device), torch.ones(1, dtype=torch.int32, device=device)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
def test_a_draw_never_waits_for_the_device() -> None:
    device = torch.device("cuda")
    sampler = CudaSampler(5003, SLOTS, device, torch.zeros(SLOTS, dtype=torch.int32, device=device))
    slots = list(range(len(EVERY)))
    numbers = torch.tensor([slots, [4] * len(slots)], dtype=torch.int32, device=device)
    logits = torch.randn(len(slots), 5003, device=device)
    try:
        torch.cuda.set_sync_debug_mode("error")
        sampler.start([Row(params(seed=i, **p), (1, 4, 4, 7), 2).start(i) for i, p in enumerate(EVERY)])
        drawn = sampler.draw(logits, (slots, np.full(SLOTS, 4)), numbers[0], numbers[1], _masks(slots, 5003))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    tokens, scores = drawn.result()
    assert len(tokens) == len(slots)
    assert set(scores) == {row for row, options in enumerate(EVERY) if "logprobs" in options}


@pytest.mark.skipif(INTERPRETING, reason="this process is the interpreter's")
def test_this_file_passes_in_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
