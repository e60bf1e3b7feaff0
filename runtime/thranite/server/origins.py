"""Which pages may open a WebSocket: browsers ask nobody before they do, as they do before a request."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from thranite.server.errors import error_answer
from thranite.server.models import refuse_socket

ANY = "*"


class SocketOriginMiddleware:
    """Refuses handshakes from pages of other sites than this one and `allowed`. Programs send no origin."""

    def __init__(self, app: ASGIApp, allowed: Sequence[str]) -> None:
        self._app, self._allowed = app, frozenset(allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket" or self._welcome(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        answer = error_answer(
            403, "A page of this origin may not connect", "invalid_request_error", code="origin_not_allowed"
        )
        await refuse_socket(answer)(scope, receive, send)

    def _welcome(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        if origin is None or ANY in self._allowed or origin in self._allowed:
            return True
        return origin.partition("://")[2] == headers.get("host")
