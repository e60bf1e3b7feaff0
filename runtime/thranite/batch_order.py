"""In which order a batch given at once is begun, and in steps of how many tokens.

The longest outputs come first, where all can run together: the batch ends with its longest output, so what begins last
should be short (Graham: "Bounds on multiprocessing timing anomalies", 1969). Lengths are the most that requests may
produce. Where the KV cache cannot hold all at once, the order is the caller's: longest first would then have the most
tokens in the cache at the same time, and preempt more.

Then small steps may pay: a token that decodes beside a prompt costs its arithmetic alone, one that decodes in a step of
its own waits for all weights. What counts is how many steps without prompts are left (`schedule`): each takes as long
as reading the weights, and a further step with prompts costs some of its own launches and norms. llama-8b on an H200,
256 prompts of 100 to 1,024 tokens and as many out: 10,396 output tok/s with 8,192 tokens a step, 10,492 with 4,096,
10,501 with 2,048, 10,688 with 1,024.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from thranite.engine.settings import EngineSettings
from thranite.request import EngineRequest

STEP_TOKENS = (1024, 2048, 4096)
"""Sizes of steps that are tried beside the largest. At most a fourth of a step's tokens decode: graphs of steps of
1,024 tokens hold 256 that do."""

WORTH = 0.5
"""Steps without prompts; a further step with prompts must save more."""


class BatchOrder(NamedTuple):
    """The requests as they should be added, and the most tokens of a step meanwhile."""

    requests: Sequence[EngineRequest]
    step_tokens: int


def batch_order(requests: Sequence[EngineRequest], settings: EngineSettings) -> BatchOrder:
    """Longest outputs first, equal ones as the caller has them; and the size of step that saves most, if one does."""
    largest = settings.max_num_batched_tokens
    widths = np.array([request.params.n for request in requests], np.int64)
    sequences = int(widths.sum())
    if len(requests) < 2 or sequences > settings.most_decodes:
        return BatchOrder(requests, largest)
    outputs = np.array([request.params.max_tokens for request in requests], np.int64)
    prompts = np.array([len(request.prompt_token_ids) for request in requests], np.int64)
    order = np.argsort(-outputs, kind="stable")
    prompts, outputs, widths = prompts[order], outputs[order], widths[order]
    layout = settings.layout
    capacity = (settings.num_blocks - 1) * layout.block_size * (1.0 - settings.watermark)

    def fits(last_start: int) -> bool:
        most = most_tokens(prompts + layout.block_size, outputs, widths, last_start)
        return most * len(layout.groups) <= capacity

    with_prompts, without = schedule(prompts, outputs, largest - sequences)
    if not fits(with_prompts):
        return BatchOrder(requests, largest)
    best, most_saved = largest, 0
    for tokens in STEP_TOKENS:
        if 4 * sequences <= tokens < largest:
            more, left = schedule(prompts, outputs, tokens - sequences)
            saved = without - left
            if saved > max(most_saved, WORTH * (more - with_prompts)) and fits(more):
                best, most_saved = tokens, saved
    return BatchOrder([requests[i] for i in order], best)


def schedule(prompts: np.ndarray, outputs: np.ndarray, share: int) -> tuple[int, int]:
    """(Steps with prompts, steps without) of a batch that is begun in this order, `share` prompt tokens a step.

    Int64 [N] each: prompt and output tokens. The step that ends a prompt brings its first output token.
    """
    ends = -(-prompts.cumsum() // max(share, 1))
    return int(ends[-1]), int((ends + outputs - 1).max() - ends[-1])


def most_tokens(prompts: np.ndarray, outputs: np.ndarray, widths: np.ndarray, last_start: int) -> int:
    """A bound of the tokens that sequences hold at any one step.

    Int64 [N] each, outputs descending: prompt tokens, output tokens and sequences of each request; all have begun by
    step `last_start`. At step t, a request that is not at its end has produced at most min(t, output), and only those
    with more than t − last_start output tokens are left: so the most is reached just before one of them ends.
    """
    ends = outputs - 1 + last_start
    left = np.searchsorted(-outputs, -outputs, side="right")  # requests with at least as much output
    growing = np.minimum(np.searchsorted(-outputs, -ends, side="left"), left)  # with more than `ends`
    number, held, produced = (
        np.concatenate([[0], np.cumsum(values)]) for values in (widths, widths * prompts, widths * outputs)
    )
    return int((held[left] + ends * number[growing] + produced[left] - produced[growing]).max())
