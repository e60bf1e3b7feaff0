"""Request bodies to structs, and decoding errors to answers that name the field."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from thranite.errors import InvalidRequest
from thranite.server.wire.request import GenerationRequest

T = TypeVar("T", bound=GenerationRequest)
S = TypeVar("S")

MAX_PRIORITY = 2**31

_PATH = re.compile(r"^(?P<message>.*?)(?: - at (?:`key` in )?`\$\.?(?P<path>[^`]*)`)?$", re.DOTALL)
_FIELD = re.compile(r"(?:unknown|required) field `([^`]+)`")


def decode_request(body: bytes, kind: type[T]) -> T:
    """A request of `kind`, whole and of the right types; its values are checked later, with its parameters."""
    request = decode(body, kind)
    check_request(request)
    return request


def decode(body: bytes | str, kind: type[S]) -> S:
    """JSON of `kind`. Raises InvalidRequest that names the field."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _explain(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"The request body is not valid JSON: {error}", None, "invalid_json") from error


def check_request(request: GenerationRequest) -> None:
    """What types do not say."""
    refuse_unsupported(request, request.off_values)
    if request.priority is not None and abs(request.priority) > MAX_PRIORITY:
        raise InvalidRequest(f"priority must lie between -{MAX_PRIORITY} and {MAX_PRIORITY}", "priority")
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("stream_options is only allowed when stream is true", "stream_options")
    if request.stream_options is not None and request.stream_options.include_obfuscation:
        raise InvalidRequest("include_obfuscation is not supported", "stream_options.include_obfuscation")


def refuse_unsupported(value: msgspec.Struct, off_values: Mapping[str, tuple[Any, ...]], path: str = "") -> None:
    """Known fields without support here: only null and values that mean "off" pass."""
    for name, off in off_values.items():
        given = getattr(value, name)
        if given is None or any(given == item and type(given) is type(item) for item in off):
            continue
        allowed = f" (only {' or '.join(map(repr, off))} is)" if off else ""
        raise InvalidRequest(f"{path}{name} is not supported{allowed}", path + name, "unsupported_parameter")


def _explain(text: str) -> InvalidRequest:
    """msgspec's "… - at `$.messages[0].role`" as a 400, with OpenAI's words for the two commonest errors."""
    found = _PATH.match(text)
    message, path = (found["message"], (found["path"] or "").removesuffix("[...]")) if found else (text, "")
    if (named := _FIELD.search(message)) is None:
        return InvalidRequest(f"{message} in field {path}" if path else message, path or None, "invalid_type")
    param = f"{path}.{named[1]}" if path else named[1]
    if "unknown" in message:
        return InvalidRequest(f"Unrecognized request argument supplied: {param}", param, "unknown_parameter")
    return InvalidRequest(f"Missing required parameter: {param}", param, "missing_required_parameter")
