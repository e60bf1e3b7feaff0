"""In which order a batch given at once is begun, and in steps of how many tokens.

The longest outputs come first, where all can run together: the batch ends with its longest output, so what begins last
should be short (Graham: "Bounds on multiprocessing timing anomalies", 1969). Lengths are the most that requests may
produce. Where the KV cache cannot hold all at once, the order is the caller's: longest first would then have the most
tokens in the cache at the same time, and preempt more.

Then small steps may pay. A step of few tokens takes as long as reading the weights, one of many as long as its
arithmetic: what it takes is convex in its tokens (`StepCost`), so of two batches with as many tokens in as many steps
the more even one is done first. Prompts computed as soon as possible fill a few steps to the brim and leave the others
to a token a sequence; spread over the batch they cost little but their arithmetic, beside weights that are read anyway,
until they keep the last outputs waiting. A small model's steps take the most for their launches, and so few tokens do
not pay there. docs/performance.md has what was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np

from thranite.engine.settings import EngineSettings
from thranite.engine.step_cost import StepCost
from thranite.request import EngineRequest
from thranite.runner.mixed_shapes import PROMPT_SHARE, SMALL_DECODES, SMALL_SIZES

STEP_TOKENS = (256, 320, 384, 512, 640, 768, 1024, 2048, 4096)
"""Sizes of steps that are tried beside the largest: products fill their tiles. Graphs of up to 1,024 tokens are there
at Ready; of larger ones, where a model has any, those of powers of two."""

ROOM = 1.25
"""Tokens of a step for each sequence at least, so that prompts go on while all decode."""

WORTH = 0.015
"""A smaller step must save more than this share of the time without attention, or the estimate says nothing."""


class BatchOrder(NamedTuple):
    """The requests as they should be added, the most tokens of a step meanwhile, and whether each request produces as
    many tokens as it may."""

    requests: Sequence[EngineRequest]
    step_tokens: int
    lengths_known: bool


class Schedule(NamedTuple):
    """What a batch takes in steps of a size."""

    with_prompts: int  # steps
    steps: int
    seconds: float  # without attention


def batch_order(
    requests: Sequence[EngineRequest], settings: EngineSettings, *, stop_strings: bool = False
) -> BatchOrder:
    """Longest outputs first, equal ones as the caller has them; and the size of step that saves most, if one does.

    `stop_strings`: whether some request has any, which end it outside of the engine."""
    known = not stop_strings and not any(map(may_end_early, requests))
    largest = settings.max_num_batched_tokens
    widths = np.array([request.params.n for request in requests], np.int64)
    sequences = int(widths.sum())
    if len(requests) < 2 or sequences > settings.most_decodes:
        return BatchOrder(requests, largest, known)
    outputs = np.array([request.params.max_tokens for request in requests], np.int64)
    prompts = np.array([len(request.prompt_token_ids) for request in requests], np.int64)
    order = np.argsort(-outputs, kind="stable")
    prompts, outputs, widths = prompts[order], outputs[order], widths[order]
    layout = settings.layout
    capacity = (settings.num_blocks - 1) * layout.block_size * (1.0 - settings.watermark)

    def fits(planned: Schedule) -> bool:
        most = most_tokens(prompts + layout.block_size, outputs, widths, planned.with_prompts)
        return most * len(layout.groups) <= capacity

    lengths = list(zip(prompts.tolist(), outputs.tolist(), widths.tolist(), strict=True))
    cost = settings.step_cost
    plain = schedule(lengths, largest, cost)
    if not fits(plain):
        return BatchOrder(requests, largest, known)
    best, least = largest, (1 - WORTH) * plain.seconds
    tokens_of_all = int(prompts.sum() + (widths * (outputs - 1)).sum())
    if plain.steps * cost.seconds(tokens_of_all / plain.steps) < least:  # all steps alike: no size takes less
        for tokens in STEP_TOKENS:
            if tokens < largest and suits(tokens, sequences, float(prompts.mean())):
                tried = schedule(lengths, tokens, cost)
                if tried.seconds < least and fits(tried):
                    best, least = tokens, tried.seconds
    return BatchOrder([requests[i] for i in order], best, known)


def may_end_early(request: EngineRequest) -> bool:
    """Whether a token or its grammar may end the request."""
    params = request.params
    return bool(params.eos_token_ids or params.stop_token_ids) or request.grammar is not None


def suits(tokens: int, sequences: int, prompt: float) -> bool:
    """Whether steps of so many tokens have room for the sequences, and small ones a graph that holds them and as many
    prompts as fill it. `prompt`: a prompt's mean tokens; what the prefix cache will have of them is not known."""
    in_graph = sequences <= SMALL_DECODES and prompt >= PROMPT_SHARE
    return ROOM * sequences <= tokens and (in_graph or tokens > SMALL_SIZES[-1])


def schedule(lengths: Sequence[tuple[int, int, int]], tokens: int, cost: StepCost) -> Schedule:
    """The steps of a batch begun in this order, as `Scheduler` plans them with pages for all, if nobody pauses.

    `lengths`: (prompt tokens, output tokens, sequences) of each request; `tokens`: of a step, as many as sequences at
    least. The step that ends a prompt brings its first output token.
    """
    step, decoding, seconds = 0, 0, 0.0
    ends: list[tuple[int, int]] = []  # a heap: the last step of a request's sequences, and how many they are
    coming = iter(lengths)
    prompt, output, width = next(coming)
    while width:
        step += 1
        while ends and ends[0][0] < step:
            decoding -= heappop(ends)[1]
        share, begun = tokens - decoding, 0
        while width and prompt <= share:
            share -= prompt
            begun += width
            heappush(ends, (step + output - 1, width))
            prompt, output, width = next(coming, (0, 0, 0))
        if width:
            prompt, share = prompt - share, 0
        seconds += cost.seconds(tokens - share) + cost.prompts
        decoding += begun
    with_prompts = step
    while ends:
        end, width = heappop(ends)
        seconds += (end - step) * cost.seconds(decoding)
        step = end
        decoding -= width
    return Schedule(with_prompts, step, seconds)


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
