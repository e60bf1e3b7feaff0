"""Messages of the wire to messages of a chat template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from thranite.errors import InvalidRequest
from thranite.server.decode import refuse_unsupported
from thranite.server.wire.chat import ChatMessage, TextPart, ToolCall


def template_messages(messages: Sequence[ChatMessage], knows_developer: bool) -> list[dict[str, Any]]:
    """Plain dicts with text content. A template without developer messages gets them as system messages."""
    return [_message(message, f"messages[{index}].", knows_developer) for index, message in enumerate(messages)]


def _message(message: ChatMessage, path: str, knows_developer: bool) -> dict[str, Any]:
    refuse_unsupported(message, message.off_values, path)
    _check_tool_fields(message, path)
    if message.content is None and not message.tool_calls:
        raise InvalidRequest("a message needs content", path + "content")
    role = "system" if message.role == "developer" and not knows_developer else message.role
    shown = {"role": role, "content": _text(message.content or "")}
    calls = [_call(call, f"{path}tool_calls[{i}].") for i, call in enumerate(message.tool_calls or ())]
    optional = {
        "name": message.name,
        "reasoning_content": message.reasoning_content,
        "tool_call_id": message.tool_call_id,
        "tool_calls": calls or None,
    }
    return shown | {name: value for name, value in optional.items() if value is not None}


def _check_tool_fields(message: ChatMessage, path: str) -> None:
    if message.role == "tool" and message.tool_call_id is None:
        raise InvalidRequest("a tool's message names the call that it answers", path + "tool_call_id")
    if message.role != "tool" and message.tool_call_id is not None:
        raise InvalidRequest("only a tool's message answers a call", path + "tool_call_id")
    if message.role != "assistant" and message.tool_calls:
        raise InvalidRequest("only an assistant's message calls tools", path + "tool_calls")


def _call(call: ToolCall, path: str) -> dict[str, Any]:
    """Templates write arguments as JSON themselves, so they get them as objects."""
    arguments = call_arguments(call.function.arguments, path + "function.arguments")
    shown = {"type": "function", "function": {"name": call.function.name, "arguments": arguments}}
    return shown if call.id is None else {"id": call.id, **shown}


def call_arguments(text: str, path: str) -> dict[str, Any]:
    """A call's arguments, of JSON text in the field `path`. Raises InvalidRequest."""
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"arguments must be JSON: {error}", path) from error
    if not isinstance(arguments, dict):
        raise InvalidRequest("arguments must be a JSON object", path)
    return arguments


def _text(content: str | Sequence[TextPart]) -> str:
    """Parts become lines of one string: templates of text models expect a string."""
    return content if isinstance(content, str) else "\n".join(part.text for part in content)
