"""Who asks, and what that allows: the class of the key, and the deadline that a header sets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

from starlette.datastructures import Headers
from starlette.types import Scope

from thranite.errors import InvalidRequest
from thranite.server.errors import NotAllowed
from thranite.server.keys import KeyClass
from thranite.server.wire.request import GenerationRequest

KEY_CLASS = "thranite.key_class"  # in the scope, behind the check of keys
TIMEOUT_HEADER = "x-request-timeout"

R = TypeVar("R", bound=GenerationRequest)


@dataclass(frozen=True, slots=True)
class Caller:
    """`key_class`: None where the server asks for no keys, and trusts everybody. `timeout_seconds`: the header's."""

    key_class: KeyClass | None = None
    timeout_seconds: float | None = None

    @classmethod
    def of(cls, scope: Scope) -> Caller:
        """Raises InvalidRequest for a header that is no number of seconds."""
        text = Headers(scope=scope).get(TIMEOUT_HEADER)
        return cls(scope.get(KEY_CLASS), None if text is None else _seconds(text))

    def apply(self, request: R) -> R:
        """Put into `request` what it leaves to the caller. Raises NotAllowed for a priority above the key's class."""
        least = None if self.key_class is None else self.key_class.least_priority
        if least is not None and request.priority is not None and request.priority < least:
            raise NotAllowed(
                f"priority {request.priority} is not open to an API key of class {self.key_class}: {least} is its "
                "lowest, and lower runs earlier",
                "priority",
                "priority_not_allowed",
            )
        if request.priority is None and least:
            request.priority = least
        if self.timeout_seconds is not None:
            request.timeout = min(self.timeout_seconds, math.inf if request.timeout is None else request.timeout)
        return request


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InvalidRequest(f"X-Request-Timeout must be a number of seconds above 0, got {text!r}", TIMEOUT_HEADER)
    return seconds
