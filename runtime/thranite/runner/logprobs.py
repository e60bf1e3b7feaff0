"""Log-probabilities of given tokens under raw logits: of sampled tokens, and of a prompt's.

Ranks and the k best follow one order: by logit, and among equals the lower token id first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from thranite.request import TokenLogprobs
from thranite.runner.sampling_transfer import HostCopies, upload


class ScoredTokens:
    """Scores of n tokens on the device, on their way to the host."""

    def __init__(self, logits: Tensor, tokens: Tensor, ks: Sequence[int]) -> None:
        """`logits` [n, vocab], `tokens` int64 [n], `ks[i]`: how many of the best row i asked for."""
        self._ks = ks
        value = logits.gather(1, tokens[:, None])
        normaliser = logits.logsumexp(-1, keepdim=True)
        top = best_ids(logits, min(max(ks, default=0), logits.shape[1]))
        top_logprobs = logits.gather(1, top) - normaliser
        ranks = token_ranks(logits, tokens[:, None], value)
        self._copies = HostCopies([tokens, (value - normaliser)[:, 0], ranks, top, top_logprobs])

    def result(self) -> list[TokenLogprobs]:
        """Waits for the device."""
        tokens, logprobs, ranks, top, top_logprobs = (tensor.tolist() for tensor in self._copies.wait())
        best = [
            tuple(zip(ids[:k], values[:k], strict=True))
            for ids, values, k in zip(top, top_logprobs, self._ks, strict=True)
        ]
        return [TokenLogprobs(*row) for row in zip(tokens, logprobs, ranks, best, strict=True)]


def token_ranks(logits: Tensor, tokens: Tensor, values: Tensor) -> Tensor:
    """int64 [n]: 1 + how many tokens come before. `tokens` and their logits `values`: [n, 1]."""
    ids = torch.arange(logits.shape[1], device=logits.device)
    before = (logits > values) | ((logits == values) & (ids < tokens))
    return before.sum(-1) + 1


def best_ids(logits: Tensor, k: int) -> Tensor:
    """int64 [n, k]: ids of the k best. topk leaves the choice among ties open, so of logits it gives only the bound."""
    if k == 0:
        return torch.empty(len(logits), 0, dtype=torch.int64, device=logits.device)
    width = logits.shape[1]
    bound = logits.topk(k).values[:, -1:]
    low_ids_first = torch.arange(width, 0, -1, dtype=torch.int32, device=logits.device)
    order = torch.where(logits >= bound, low_ids_first, 0) + (logits > bound) * width
    ids = -order.topk(k).values.long() % width  # those above the bound by id, then its ties by id
    by_logit = logits.gather(1, ids).sort(dim=-1, descending=True, stable=True).indices
    return ids.gather(1, by_logit)


def begin_prompt_logprobs(
    hidden: Tensor, targets: Sequence[int], k: int, logits_fn: Callable[[Tensor], Tensor], slice_rows: int
) -> list[ScoredTokens]:
    """Score `targets[i]` under the logits of `hidden[i]` ([T, hidden size], T at least the number of targets).

    At most `slice_rows` rows of logits exist at a time. Nothing waits for the device.
    """
    wanted = upload(np.array(targets, np.int64), hidden.device)
    parts = []
    for first in range(0, len(targets), slice_rows):
        tokens = wanted[first : first + slice_rows]
        logits = logits_fn(hidden[first : first + len(tokens)])
        parts.append(ScoredTokens(logits, tokens, [k] * len(tokens)))
    return parts


def prompt_logprobs(
    hidden: Tensor, targets: Sequence[int], k: int, logits_fn: Callable[[Tensor], Tensor], slice_rows: int
) -> list[TokenLogprobs]:
    """`begin_prompt_logprobs`, waited for: one entry a target."""
    parts = begin_prompt_logprobs(hidden, targets, k, logits_fn, slice_rows)
    return [score for part in parts for score in part.result()]
