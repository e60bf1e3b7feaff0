"""Prompt scores of a step, pooled prompts, and the step's result: what both executors do alike at a step's two ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from thranite.engine.plan import StepPlan, StepResult
from thranite.request import TokenLogprobs
from thranite.runner.logprobs import ScoredTokens, begin_prompt_logprobs
from thranite.runner.sampling_transfer import HostCopies

PromptScores = Mapping[int, list[ScoredTokens]]  # by index into plan.prefills


class Drawn(Protocol):
    """A step's draw on its way to the host."""

    def result(self) -> tuple[list[tuple[int, ...]], Mapping[int, Sequence[TokenLogprobs]]]: ...


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


@dataclass(frozen=True, slots=True)
class Pooled:
    """A vector of each of the prefills `indices`, on their way to the host."""

    indices: Sequence[int]
    copies: HostCopies

    def result(self) -> dict[int, list[float]]:
        """Waits for this step, not for one launched since."""
        return dict(zip(self.indices, self.copies.wait()[0].tolist(), strict=True))


def begin_pooling(plan: StepPlan, starts: Sequence[int], hidden: Tensor) -> Pooled | None:
    """[hidden size] in fp32 or better for each prefill that asked: the sum of its rows, or the last one."""
    pooled = {}
    for index, (prefill, first) in enumerate(zip(plan.prefills, starts, strict=True)):
        if prefill.pooling is None:
            continue
        rows = hidden[first : first + len(prefill.token_ids)]
        wide = torch.promote_types(hidden.dtype, torch.float32)
        pooled[index] = rows.sum(0, dtype=wide) if prefill.pooling == "mean" else rows[-1].to(wide)
    return Pooled(list(pooled), HostCopies([torch.stack(list(pooled.values()))])) if pooled else None


def finish_step(sampled: Drawn | None, scores: PromptScores, pooled: Pooled | None) -> StepResult:
    """Wait for the device. `sampled` is None for a step without samples."""
    tokens, logprobs = ([], {}) if sampled is None else sampled.result()
    finished = {index: tuple(score for part in parts for score in part.result()) for index, parts in scores.items()}
    return StepResult(tokens, logprobs, finished, {} if pooled is None else pooled.result())
