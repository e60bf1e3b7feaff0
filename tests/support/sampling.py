"""What a sampled row must be, one row at a time in float64, and how to ask a `Sampler` for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from thranite.engine.plan import SlotStart
from thranite.runner.sampler import Sampler
from thranite.sampling_params import TokenParams

Floats = NDArray[np.float64]
M32, M64 = 2**32 - 1, 2**64 - 1
DRAW_CHUNK, FIRST_CHUNK = 4096, 2**31


def params(**options: Any) -> TokenParams:
    return TokenParams(**{"max_tokens": 1000, "seed": 0, **options})


@dataclass(frozen=True)
class Row:
    """One sequence about to draw a token."""

    params: TokenParams
    token_ids: tuple[int, ...]
    prompt_len: int
    sample_index: int = 0
    mask: tuple[bool, ...] | None = None

    def start(self, slot: int) -> SlotStart:
        return SlotStart(slot, self.sample_index, self.params, self.token_ids, self.prompt_len, 0)


def pack_mask(allowed: Sequence[bool]) -> bytes:
    words = [0] * -(-len(allowed) // 32)
    for token, bit in enumerate(allowed):
        words[token // 32] |= int(bit) << (token % 32)
    return b"".join(word.to_bytes(4, "little") for word in words)


def sample_rows(sampler: Sampler, logits: torch.Tensor, rows: Sequence[Row], slots: Sequence[int]) -> list[int]:
    """Start every row in its slot and draw once."""
    sampler.start([row.start(slot) for row, slot in zip(rows, slots, strict=True)])
    masks = {slot: pack_mask(row.mask) for row, slot in zip(rows, slots, strict=True) if row.mask is not None}
    drawn = sampler.sample(logits.clone(), slots, [len(row.token_ids) for row in rows], masks)
    return [tokens[0] for tokens in drawn.result()[0]]


def mix64(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & M64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & M64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & M64
    return x ^ (x >> 31)


def mix32(x: int) -> int:
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & M32
    x = ((x ^ (x >> 15)) * 0x846CA68B) & M32
    return x ^ (x >> 16)


def bits(seed: int, sample_index: int, position: int, token: int) -> int:
    key = mix64(mix64(seed & M64) ^ (sample_index << 32 | position))
    return mix32((mix32(token ^ (key & M32)) + (key >> 32)) & M32)


def gumbel(seed: int, sample_index: int, position: int, token: int) -> float:
    u = (bits(seed, sample_index, position, token) + 0.5) / 2**32
    return -math.log(-math.log1p(-u))


def constrained(logits: Floats, row: Row) -> Floats:
    """Logits after bans, biases and penalties: what a greedy row takes the best of."""
    p = row.params
    x: Floats = logits.astype(np.float64)
    for token in range(len(x)):
        if p.allowed_token_ids and token not in p.allowed_token_ids:
            x[token] = -math.inf
        if row.mask is not None and not row.mask[token]:
            x[token] = -math.inf
        if (token,) in p.bad_words:
            x[token] = -math.inf
    limited = row.mask is not None or bool(p.allowed_token_ids)
    if len(row.token_ids) - row.prompt_len < p.min_tokens:
        stops = [*p.eos_token_ids, *p.stop_token_ids]
        others = [t for t in range(len(x)) if t not in stops and x[t] > -math.inf]
        if others or not limited:
            x[stops] = -math.inf
    for token, bias in p.logit_bias:
        x[token] += np.float32(bias)
    return penalized(x, row)


def penalized(x: Floats, row: Row) -> Floats:
    p, output = row.params, row.token_ids[row.prompt_len :]
    for token in set(row.token_ids):
        x[token] = x[token] / p.repetition_penalty if x[token] > 0 else x[token] * p.repetition_penalty
    for token in set(output):
        x[token] -= p.frequency_penalty * output.count(token) + p.presence_penalty
    return x


def distribution(logits: Floats, row: Row) -> Floats:
    """Probabilities of the tokens of a row with temperature above 0."""
    p = row.params
    probs = softmax(constrained(logits, row) / p.temperature)
    probs = np.where(probs >= p.min_p * probs.max() * (1 - 1e-12), probs, 0.0)
    if 0 < p.top_k < len(probs):
        probs = np.where(probs >= np.sort(probs)[-p.top_k], probs, 0.0)
    probs = probs / probs.sum()
    if p.top_p < 1.0:
        likelier = np.array([probs[probs > own].sum() for own in probs])
        probs = np.where(likelier < p.top_p, probs, 0.0)
    return np.asarray(probs / probs.sum(), np.float64)


def expected_token(logits: Floats, row: Row) -> int:
    p = row.params
    if p.temperature == 0.0:
        return int(np.argmax(constrained(logits, row)))
    probs = distribution(logits, row)
    position = len(row.token_ids)
    with np.errstate(divide="ignore"):
        starts = range(0, len(probs), DRAW_CHUNK)
        shares = np.log([probs[start : start + DRAW_CHUNK].sum() for start in starts])
        chunks = [gumbel(p.seed, row.sample_index, position, FIRST_CHUNK + chunk) for chunk in range(len(starts))]
        start = starts[int(np.argmax(shares + chunks))]
        ids = range(start, min(start + DRAW_CHUNK, len(probs)))
        noise = [gumbel(p.seed, row.sample_index, position, token) for token in ids]
        return ids[int(np.argmax(np.log(probs[start : ids.stop]) + noise))]


def softmax(x: Floats) -> Floats:
    weights = np.exp(x - x.max())
    return np.asarray(weights / weights.sum(), np.float64)


def chi_square_excess(counts: Floats, probs: Floats) -> float:
    """How many standard deviations the chi-square statistic lies above its mean; inf if the impossible happened."""
    possible = probs > 0
    if counts[~possible].sum() > 0:
        return math.inf
    expected = probs[possible] * counts.sum()
    freedom = max(int(possible.sum()) - 1, 1)
    statistic = float(((counts[possible] - expected) ** 2 / expected).sum())
    return (statistic - freedom) / math.sqrt(2 * freedom)
