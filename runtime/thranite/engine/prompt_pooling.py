"""A prompt's hidden states pooled over its chunks."""

from __future__ import annotations

from thranite.engine.plan import StepResult
from thranite.engine.scheduler import ScheduledStep
from thranite.engine.sequence import Sequence, State


def add_pooled(scheduled: ScheduledStep, result: StepResult) -> None:
    """Add a step's vectors to their requests. A prompt recomputed from its start begins anew."""
    for index, vector in result.pooled.items():
        seq, prefill = scheduled.prefills[index], scheduled.plan.prefills[index]
        if seq.state is State.FINISHED:
            continue
        before = seq.parent.pooled
        if prefill.start == 0 or before is None or prefill.pooling == "last":
            seq.parent.pooled = list(vector)
        else:
            seq.parent.pooled = [a + b for a, b in zip(before, vector, strict=True)]


def take_embedding(seq: Sequence) -> tuple[float, ...] | None:
    """The whole prompt's vector, with a request's first delta."""
    pooled, seq.parent.pooled = seq.parent.pooled, None
    if pooled is None:
        return None
    divisor = seq.prompt_len if seq.params.pooling == "mean" else 1
    return tuple(value / divisor for value in pooled)
