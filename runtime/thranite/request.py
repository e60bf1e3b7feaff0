"""What crosses the engine's boundary: requests in, deltas out. Plain data; no torch, no msgspec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from thranite.sampling_params import TokenParams


class FinishReason(StrEnum):
    """Why a sequence ended. STOP and LENGTH are OpenAI's; the others end a stream with an error event."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    TIMEOUT = "timeout"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Grammar:
    """What the output's text must match. `source`: llguidance's notation, checked to compile.

    `min_tokens` stands here and not in the request's parameters: only the grammar knows where text cannot go on, and
    there it may end early.
    """

    source: str
    min_tokens: int = 0


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One request as the engine takes it: `params.n` sequences over one prompt.

    `priority`: lower runs earlier (vLLM's meaning). `timeout_seconds`: deadline counted from admission.
    `cache_salt` separates prefix caches (tenant, adapter).
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: TokenParams
    priority: int = 0
    timeout_seconds: float | None = None
    cache_salt: str = ""
    grammar: Grammar | None = None


class TokenLogprobs(NamedTuple):
    """Natural-log probabilities at one position, taken from the model's raw logits (before penalties and temperature).

    A named tuple, as `SequenceDelta`. `rank` of the token, 1 the most likely. `top`: the k best (token id, logprob),
    best first.
    """

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


class SequenceDelta(NamedTuple):
    """What one step brought for one sequence: 0 to k new tokens, and the end if it ended.

    A named tuple, as one is made a row and step: a frozen dataclass takes four times as long.

    `stop_token_id`: the id from `stop_token_ids` that ended it (None for EOS). `prompt_logprobs` (one entry a prompt
    token, the first None) and `cached_tokens` (prompt tokens found in the prefix cache) come with a request's first
    delta of sample 0. `error` explains TIMEOUT, ABORT and ERROR.
    """

    request_id: str
    index: int  # type: ignore[assignment]  # shadows the method of tuple, which nobody calls
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    logprobs: Sequence[TokenLogprobs] | None = None  # one entry a token, perhaps made when it is read
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    cached_tokens: int | None = None
    error: str | None = None
    embedding: tuple[float, ...] | None = None  # the pooled prompt of a request that asked, with its only delta
