"""Prompt logprobs gathered over the chunks of a prompt."""

from __future__ import annotations

from thranite.engine.plan import StepResult
from thranite.engine.scheduler import ScheduledStep
from thranite.engine.sequence import Sequence, State
from thranite.request import TokenLogprobs


def add_prompt_logprobs(scheduled: ScheduledStep, result: StepResult) -> None:
    """Add a step's scores to their requests. A prompt recomputed from its start begins anew."""
    for index, scores in result.prompt_logprobs.items():
        seq, prefill = scheduled.prefills[index], scheduled.plan.prefills[index]
        if seq.state is State.FINISHED:
            continue
        if prefill.start == 0 or seq.parent.prompt_logprobs is None:
            seq.parent.prompt_logprobs = [None]  # nothing predicts the first token
        seq.parent.prompt_logprobs.extend(scores)


def take_prompt_logprobs(seq: Sequence) -> tuple[TokenLogprobs | None, ...] | None:
    """The whole prompt's scores, once, with the first delta of sample 0."""
    if not seq.needs_prompt_logprobs:
        return None
    seq.needs_prompt_logprobs = False
    scores, seq.parent.prompt_logprobs = seq.parent.prompt_logprobs, None
    return tuple(scores or (None,))
