"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, UnsetType

from thranite.server.wire.request import GenerationRequest
from thranite.server.wire.usage import Usage


class CompletionRequest(GenerationRequest, kw_only=True):
    """`prompt`: text, token ids, or a list of either."""

    prompt: str | list[str | int | list[int]]
    echo: bool | None = None
    logprobs: int | None = None

    best_of: Any = None
    suffix: Any = None

    off_values: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **GenerationRequest.off_values,
        "best_of": (1,),
        "suffix": ("",),
    }


class CompletionLogprobs(msgspec.Struct):
    """Four lists of equal length; the first token of an echoed prompt has null in the middle two."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: list[dict[str, Any] | None] | UnsetType = UNSET


class Completion(msgspec.Struct):
    """A response, or a chunk of a stream. `usage` is null in all but the last chunk if usage was asked for."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    system_fingerprint: str
    object: Literal["text_completion"] = "text_completion"
    usage: Usage | UnsetType | None = UNSET
