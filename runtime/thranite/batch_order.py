"""In which order a batch given at once is begun: the longest outputs first, where all can run together.

The batch ends with its longest output, so what begins last should be short (Graham: "Bounds on multiprocessing timing
anomalies", 1969). Lengths are the most that requests may produce. Where the KV cache cannot hold all at once, the order
is the caller's: longest first would then have the most tokens in the cache at the same time, and preempt more.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from thranite.engine.settings import EngineSettings
from thranite.request import EngineRequest


def batch_order(requests: Sequence[EngineRequest], settings: EngineSettings) -> Sequence[EngineRequest]:
    """The requests as they should be added; those of equal length stay in the caller's order."""
    widths = np.array([request.params.n for request in requests], np.int64)
    if len(requests) < 2 or widths.sum() > settings.most_decodes:
        return requests
    outputs = np.array([request.params.max_tokens for request in requests], np.int64)
    prompts = np.array([len(request.prompt_token_ids) for request in requests], np.int64)
    order = np.argsort(-outputs, kind="stable")
    last_start = -(-int(prompts.sum()) // max(settings.max_num_batched_tokens - int(widths.sum()), 1))
    layout = settings.layout
    most = most_tokens(prompts[order] + layout.block_size, outputs[order], widths[order], last_start)
    capacity = (settings.num_blocks - 1) * layout.block_size * (1.0 - settings.watermark)
    return [requests[i] for i in order] if most * len(layout.groups) <= capacity else requests


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
