"""What `LLM.generate` returns. Names follow vLLM's, so that programs carry over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from thranite.request import TokenLogprobs


@dataclass(frozen=True)
class CompletionOutput:
    """One sample. `text` and `token_ids` end with the stop string's token; `stop_reason` is the stop string or id.

    `scores`: what `logprobs` is made of, piece by piece, None where there is none.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None
    stop_reason: str | int | None
    scores: Sequence[Sequence[TokenLogprobs]] | None = field(repr=False)

    @cached_property
    def logprobs(self) -> list[TokenLogprobs] | None:
        """An entry a token. Made when first read: five alternatives a token take longer than all else about it."""
        return None if self.scores is None else [entry for piece in self.scores for entry in piece]

    @cached_property
    def cumulative_logprob(self) -> float | None:
        return None if self.logprobs is None else sum(entry.logprob for entry in self.logprobs)


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """All samples of one prompt, in sample order."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[TokenLogprobs | None] | None
    outputs: list[CompletionOutput]
    cached_tokens: int
