"""Prompt scores of a step, and the step's result: what both executors do alike at a step's two ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from thranite.engine.plan import StepPlan, StepResult
from thranite.request import TokenLogprobs
from thranite.runner.logprobs import ScoredTokens, begin_prompt_logprobs

PromptScores = Mapping[int, list[ScoredTokens]]  # by index into plan.prefills


class Drawn(Protocol):
    """A step's draw on its way to the host."""

    def result(self) -> tuple[list[list[int]], dict[int, tuple[TokenLogprobs, ...]]]: ...


def begin_prompt_scores(
    plan: StepPlan, starts: Sequence[int], hidden: Tensor, logits_fn: Callable[[Tensor], Tensor], slice_rows: int
) -> PromptScores:
    """Score the prefills that asked. `starts`: each prefill's first row of `hidden` [T, hidden size]."""
    return {
        index: begin_prompt_logprobs(
            hidden[first : first + len(prefill.targets)],
            prefill.targets,
            prefill.prompt_logprobs,
            logits_fn,
            slice_rows,
        )
        for index, (prefill, first) in enumerate(zip(plan.prefills, starts, strict=True))
        if prefill.prompt_logprobs is not None
    }


def begin_pooling(plan: StepPlan, starts: Sequence[int], hidden: Tensor) -> dict[int, Tensor]:
    """[hidden size] in fp32 or better for each prefill that asked: the sum of its rows, or the last one."""
    pooled = {}
    for index, (prefill, first) in enumerate(zip(plan.prefills, starts, strict=True)):
        if prefill.pooling is None:
            continue
        rows = hidden[first : first + len(prefill.token_ids)]
        wide = torch.promote_types(hidden.dtype, torch.float32)
        pooled[index] = rows.sum(0, dtype=wide) if prefill.pooling == "mean" else rows[-1].to(wide, copy=True)
    return pooled


def finish_step(sampled: Drawn | None, scores: PromptScores, pooled: Mapping[int, Tensor]) -> StepResult:
    """Wait for the device. `sampled` is None for a step without samples."""
    tokens, logprobs = ([], {}) if sampled is None else sampled.result()
    finished = {index: tuple(score for part in parts for score in part.result()) for index, parts in scores.items()}
    return StepResult(tokens, logprobs, finished, {index: vector.tolist() for index, vector in pooled.items()})
