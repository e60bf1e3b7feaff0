"""What a token does to its sequence."""

from __future__ import annotations

from thranite.engine.sequence import Sequence
from thranite.request import FinishReason


def verdict(seq: Sequence, token: int) -> tuple[FinishReason | None, int | None, str | None]:
    """Whether the token just appended ends the sequence; the stop id if one did, or what went wrong.

    The sequence's constraint learns of the token here.
    """
    params, constraint = seq.params, seq.constraint
    if constraint is not None:
        constraint.accept(token)
        if constraint.failure is not None:
            return FinishReason.ERROR, None, constraint.failure
        if constraint.complete:
            return FinishReason.STOP, None, None
    if len(seq.tokens) - seq.prompt_len > params.min_tokens:
        if token in params.eos_token_ids:
            return FinishReason.STOP, None, None
        if token in params.stop_token_ids:
            return FinishReason.STOP, token, None
    return (FinishReason.LENGTH if len(seq.tokens) >= seq.end else None), None, None
