"""What `LLM.generate` returns. Names follow vLLM's, so that programs carry over."""

from __future__ import annotations

from dataclasses import dataclass

from thranite.request import TokenLogprobs


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One sample. `text` and `token_ids` end with the stop string's token; `stop_reason` is the stop string or id."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None
    cumulative_logprob: float | None
    finish_reason: str | None
    stop_reason: str | int | None


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """All samples of one prompt, in sample order."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[TokenLogprobs | None] | None
    outputs: list[CompletionOutput]
    cached_tokens: int
