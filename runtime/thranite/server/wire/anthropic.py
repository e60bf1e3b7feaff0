"""POST /v1/messages and /v1/messages/count_tokens, as Anthropic's clients speak."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import msgspec


class CacheControl(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="ephemeral"):
    """A hint. Every prefix is cached here without one."""

    ttl: str | None = None


class TextBlock(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="text"):
    text: str
    cache_control: CacheControl | None = None
    citations: list[Any] | None = None


class ToolUseBlock(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]
    cache_control: CacheControl | None = None
    caller: dict[str, Any] | None = None


class ToolResultBlock(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="tool_result"):
    tool_use_id: str
    content: str | list[TextBlock] | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None


class ThinkingBlock(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="thinking"):
    thinking: str
    signature: str | None = None


Block = TextBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock


class InputMessage(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    role: Literal["user", "assistant"]
    content: str | list[Block]


class ClientTool(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    name: str
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None
    strict: bool | None = None
    cache_control: CacheControl | None = None


class AutoChoice(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="auto"):
    disable_parallel_tool_use: bool | None = None


class AnyChoice(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="any"):
    disable_parallel_tool_use: bool | None = None


class NamedChoice(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="tool"):
    name: str
    disable_parallel_tool_use: bool | None = None


class NoChoice(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="none"):
    """No tool is called."""


class NoThinking(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="disabled"):
    """The template is told to leave reasoning out."""


class AdaptiveThinking(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="adaptive"):
    """The model decides; budgets are not supported."""


class CountTokensRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    model: str
    messages: list[InputMessage]
    system: str | list[TextBlock] | None = None
    tools: list[ClientTool] | None = None
    tool_choice: AutoChoice | AnyChoice | NamedChoice | NoChoice | None = None
    thinking: NoThinking | AdaptiveThinking | None = None


class MessagesRequest(CountTokensRequest, kw_only=True):
    max_tokens: int
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    metadata: dict[str, Any] | None = None

    service_tier: Any = None
    container: Any = None
    mcp_servers: Any = None

    off_values: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "service_tier": ("auto", "standard_only"),
        "container": (),
        "mcp_servers": ([],),
    }


class MessageUsage(msgspec.Struct):
    """`input_tokens` are those not found in the prefix cache."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int = 0


class OutputMessage(msgspec.Struct):
    """An answer: blocks of text, thinking and tool_use."""

    id: str
    model: str
    content: list[dict[str, Any]]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"] | None
    stop_sequence: str | None
    usage: MessageUsage
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"


class TokenCount(msgspec.Struct):
    input_tokens: int


class MessageErrorDetail(msgspec.Struct):
    type: str
    message: str


class MessageError(msgspec.Struct):
    error: MessageErrorDetail
    type: Literal["error"] = "error"
