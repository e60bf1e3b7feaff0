"""Wire fields to SamplingParams: what the request says, then the server's defaults, then SamplingParams' own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thranite.errors import InvalidRequest
from thranite.sampling_params import SamplingParams
from thranite.server.spelling import spelt
from thranite.server.structured import structured_outputs
from thranite.server.wire.request import GenerationRequest

# The most entries of a list that every token of an answer is held against.
_MOST = {"stop": 128, "stop_token_ids": 1024, "bad_words": 1024}
_LONGEST = 1024  # characters of a bad word, and of a cache salt
_MOST_REPEATED = 2**20
_SAME_NAME = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
    "seed",
    "stop",
    "stop_token_ids",
    "include_stop_str_in_output",
    "min_tokens",
    "ignore_eos",
    "skip_special_tokens",
    "truncate_prompt_tokens",
    "prompt_logprobs",
)


def sampling_params(
    request: GenerationRequest,
    defaults: Mapping[str, Any],
    *,
    max_tokens: int | None,
    logprobs: int | None,
    spelling: Mapping[str, str] | None = None,
) -> SamplingParams:
    """`max_tokens` and `logprobs` as the endpoint understands them.

    `spelling`: SamplingParams' name → the client's, where they differ, for errors.
    """
    if request.allowed_token_ids is not None and not request.allowed_token_ids:
        raise InvalidRequest("allowed_token_ids must hold at least one token id", "allowed_token_ids")
    if request.prompt_logprobs is not None and request.stream:
        raise InvalidRequest("prompt_logprobs is not available when stream is true", "prompt_logprobs")
    if request.timeout is not None and request.timeout <= 0:
        raise InvalidRequest(f"timeout must be above 0 seconds, got {request.timeout}", "timeout")
    _check_counts(request)
    given = {name: value for name in _SAME_NAME if (value := getattr(request, name)) is not None}
    own = {"max_tokens": max_tokens, "logprobs": logprobs, "structured_outputs": structured_outputs(request)}
    with spelt(spelling or {}):
        return SamplingParams(**{**defaults, **given, **own})


def _check_counts(request: GenerationRequest) -> None:
    """One request must not make each of its tokens dear for all others."""
    for name, most in _MOST.items():
        value = getattr(request, name)
        if isinstance(value, list) and len(value) > most:
            raise InvalidRequest(f"{name} holds {len(value)} entries; at most {most} are taken", name)
    for name, texts in (("bad_words", request.bad_words or ()), ("cache_salt", (request.cache_salt or "",))):
        longest = max(map(len, texts), default=0)
        if longest > _LONGEST:
            raise InvalidRequest(f"{name} holds {longest} characters; at most {_LONGEST} are taken", name)


def refuse_repeated(request: GenerationRequest, prompts: int) -> None:
    """Each of a request's prompts is a request to the engine, with all of these: together they must stay small."""
    sizes = {
        "logit_bias": len(request.logit_bias or ()),
        "allowed_token_ids": len(request.allowed_token_ids or ()),
        "bad_words": sum(map(len, request.bad_words or ())),
        "cache_salt": len(request.cache_salt or ""),
    }
    total = prompts * sum(sizes.values())
    if total > _MOST_REPEATED:
        field = max(sizes, key=sizes.__getitem__)
        raise InvalidRequest(
            f"{prompts} prompts with {sizes[field]} items of {field} each are too many: send them in several requests",
            field,
        )
