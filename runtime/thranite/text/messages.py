"""Messages and tools as clients write them, to those that chat templates take: one form for `LLM` and the server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from thranite.errors import InvalidRequest
from thranite.text.json_text import parse_json

Message = Mapping[str, Any]


def template_messages(messages: Sequence[Message], knows_developer: bool) -> list[dict[str, Any]]:
    """With text as content, calls' arguments as objects, and no key that is None: templates expect it absent.

    A template without developer messages gets them as system messages. Raises InvalidRequest with the field's path.
    """
    return [_message(message, f"messages[{index}].", knows_developer) for index, message in enumerate(messages)]


def _message(message: Message, path: str, knows_developer: bool) -> dict[str, Any]:
    given = {name: message[name] for name in sorted(message) if message[name] is not None}
    calls = given.pop("tool_calls", None)
    role = given.pop("role", None)
    _check_tool_fields(role, calls, given, path)
    content = given.pop("content", None)
    if content is None and not calls:
        raise InvalidRequest("a message needs content", path + "content")
    shown = {
        "role": "system" if role == "developer" and not knows_developer else role,
        "content": _text(content, path + "content"),
        **given,
    }
    if calls:
        shown["tool_calls"] = [_call(call, f"{path}tool_calls[{i}].") for i, call in enumerate(calls)]
    return shown


def _check_tool_fields(role: Any, calls: Any, given: Message, path: str) -> None:
    if role is None:
        raise InvalidRequest("a message needs a role", path + "role")
    if role == "tool" and "tool_call_id" not in given:
        raise InvalidRequest("a tool's message names the call that it answers", path + "tool_call_id")
    if role != "tool" and "tool_call_id" in given:
        raise InvalidRequest("only a tool's message answers a call", path + "tool_call_id")
    if role != "assistant" and calls:
        raise InvalidRequest("only an assistant's message calls tools", path + "tool_calls")


def _text(content: Any, path: str) -> str:
    """Parts become lines of one string: templates of text models expect a string."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, Sequence):
        raise InvalidRequest("content must be text or a list of text parts", path)
    return "\n".join(_part(part, f"{path}[{index}]") for index, part in enumerate(content))


def _part(part: Any, path: str) -> str:
    text = part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else None
    if not isinstance(text, str):
        raise InvalidRequest('a part of content must be {"type": "text", "text": …}', path)
    return text


def _call(call: Any, path: str) -> dict[str, Any]:
    """Templates write arguments as JSON themselves, so they get them as objects."""
    function = _function(call, "call", path + "function")
    arguments = function.get("arguments")
    if not isinstance(arguments, Mapping):
        arguments = call_arguments(arguments, path + "function.arguments")
    shown = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return shown if call.get("id") is None else {"id": call["id"], **shown}


def call_arguments(text: str | None, path: str) -> dict[str, Any]:
    """A call's arguments, of JSON text in the field `path`. Raises InvalidRequest."""
    try:
        arguments = parse_json(text or "{}")
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"arguments must be JSON: {error}", path) from error
    if not isinstance(arguments, dict):
        raise InvalidRequest("arguments must be a JSON object", path)
    return arguments


def template_tool(tool: Any, path: str) -> dict[str, Any]:
    """A tool with what of its function templates show."""
    return {"type": "function", "function": described(_function(tool, "tool", path + ".function"))}


def _function(owner: Any, noun: str, path: str) -> Mapping[str, Any]:
    """What a call calls, or a tool offers."""
    function = owner.get("function") if isinstance(owner, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InvalidRequest(f"a {noun} needs a function with a name", path)
    return function


def described(function: Mapping[str, Any]) -> dict[str, Any]:
    """What a model is told of a function; how strictly calls keep to it is no part of that."""
    return {name: function[name] for name in ("name", "description", "parameters") if function.get(name) is not None}
