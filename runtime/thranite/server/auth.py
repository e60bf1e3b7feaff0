"""API keys: Authorization: Bearer KEY, or x-api-key, on every path but those that are open."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from thranite.server.caller import KEY_CLASS
from thranite.server.errors import error_answer
from thranite.server.keys import ApiKey, KeyClass
from thranite.server.models import refuse_socket, respond

OPEN_PATHS = frozenset({"/health", "/"})  # the page asks its reader for the key


class ApiKeyMiddleware:
    """Refuses requests without one of the keys. Comparison takes the same time whatever the key and its length."""

    def __init__(self, app: ASGIApp, keys: Sequence[ApiKey]) -> None:
        self._app = app
        self._keys = [(_digest(key.value), key.key_class) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        guarded = scope["type"] == "websocket" or (scope["type"] == "http" and scope["path"] not in OPEN_PATHS)
        if not guarded:
            await self._app(scope, receive, send)
            return
        if (key_class := self._class_of(Headers(scope=scope))) is not None:
            await self._app({**scope, KEY_CLASS: key_class}, receive, send)
            return
        answer = error_answer(
            401,
            "Incorrect or missing API key: send it as `Authorization: Bearer KEY`",
            "invalid_request_error",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )
        refusal = respond(answer, scope["path"]) if scope["type"] == "http" else refuse_socket(answer)
        await refusal(scope, receive, send)

    def _class_of(self, headers: Headers) -> KeyClass | None:
        """Of the key that was sent; None: it is not among ours."""
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            key = headers.get("x-api-key", "")  # as Anthropic's clients send it
        given = _digest(key.strip())
        found = [key_class for known, key_class in self._keys if hmac.compare_digest(given, known)]
        return found[0] if found else None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
