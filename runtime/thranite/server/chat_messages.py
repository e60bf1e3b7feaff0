"""Messages of the wire to messages of a chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from thranite.errors import InvalidRequest
from thranite.server.decode import refuse_unsupported
from thranite.server.wire.chat import ChatMessage, TextPart


def template_messages(messages: Sequence[ChatMessage], knows_developer: bool) -> list[dict[str, Any]]:
    """Plain dicts with text content. A template without developer messages gets them as system messages."""
    return [_message(message, index, knows_developer) for index, message in enumerate(messages)]


def _message(message: ChatMessage, index: int, knows_developer: bool) -> dict[str, Any]:
    path = f"messages[{index}]."
    refuse_unsupported(message, message.off_values, path)
    if message.content is None:
        raise InvalidRequest("a message needs content", path + "content")
    role = "system" if message.role == "developer" and not knows_developer else message.role
    shown = {"role": role, "content": _text(message.content)}
    optional = {"name": message.name, "reasoning_content": message.reasoning_content}
    return shown | {name: value for name, value in optional.items() if value is not None}


def _text(content: str | Sequence[TextPart]) -> str:
    """Parts become lines of one string: templates of text models expect a string."""
    return content if isinstance(content, str) else "\n".join(part.text for part in content)
