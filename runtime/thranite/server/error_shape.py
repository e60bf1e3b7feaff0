"""The body of an error in the shape that the clients of its path read."""

from __future__ import annotations

import msgspec

from thranite.server.errors import ErrorAnswer
from thranite.server.wire.anthropic import MessageError, MessageErrorDetail

_ANTHROPIC = "/v1/messages"
_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def error_body(answer: ErrorAnswer, path: str) -> bytes:
    """OpenAI's shape, but for Anthropic's operations."""
    anthropic = path == _ANTHROPIC or path.startswith(_ANTHROPIC + "/")
    return msgspec.json.encode(message_error(answer)) if anthropic else answer.json()


def message_error(answer: ErrorAnswer) -> MessageError:
    """Anthropic's shape. It has no place for the field's name, which therefore leads the message."""
    detail = answer.body.error
    message = f"{detail.param}: {detail.message}" if detail.param else detail.message
    return MessageError(MessageErrorDetail(_KINDS.get(answer.status, "api_error"), message))
