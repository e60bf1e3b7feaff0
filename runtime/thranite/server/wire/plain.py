"""POST /generate and the messages of /ws/generate: one prompt, one sample, no envelope."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec
from msgspec import UNSET, UnsetType

from thranite.server.wire.chat import ChatMessage, Tool
from thranite.server.wire.error import ErrorDetail
from thranite.server.wire.request import GenerationRequest
from thranite.server.wire.usage import Usage

# `done` always says the usage.
_OFF_VALUES = {**GenerationRequest.off_values, "stream_options": ()}


class GenerateRequest(GenerationRequest, kw_only=True):
    """`prompt`: text or token ids. `id` comes back with the answer."""

    prompt: str | list[int]
    model: str | None = None  # type: ignore[assignment]  # a server has one; it need not be named here
    id: str | None = None

    off_values: ClassVar[Mapping[str, tuple[Any, ...]]] = _OFF_VALUES


class SocketGenerate(GenerationRequest, kw_only=True, tag_field="type", tag="generate"):
    """Begin a request. `id` is unique among the socket's open requests. `stream` false: only `done` comes."""

    id: str
    prompt: str | list[int]
    model: str | None = None  # type: ignore[assignment]

    off_values: ClassVar[Mapping[str, tuple[Any, ...]]] = _OFF_VALUES


class SocketCancel(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="cancel"):
    """End a request; nothing more comes for it. Unknown ids are ignored: it may have just ended."""

    id: str


SocketMessage = SocketGenerate | SocketCancel


class Delta(msgspec.Struct, tag_field="type", tag="delta"):
    """News of a streamed request. `text` may lag behind `token_ids`."""

    id: str
    text: str
    token_ids: list[int]


class Done(msgspec.Struct, tag_field="type", tag="done"):
    """The end of a request, with its whole text; with the prompt's tokens if `return_token_ids` asks for them."""

    id: str
    text: str
    token_ids: list[int]
    finish_reason: str | None
    usage: Usage
    stop_reason: str | int | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class SocketError(msgspec.Struct, tag_field="type", tag="error"):
    """The end of a request that failed, or a message that was refused; `id` is null where it named no request."""

    id: str | None
    error: ErrorDetail


class TokenizeRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`prompt`, or `messages` to be rendered by the chat template."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[Tool] | None = None
    return_token_strs: bool | None = None


class TokenizeAnswer(msgspec.Struct):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    tokens: list[int]
    model: str | None = None


class DetokenizeAnswer(msgspec.Struct):
    prompt: str
