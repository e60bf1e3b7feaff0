"""One JSON line for every HTTP request, on stdout. What a request says is left out unless it is asked for.

Never logged: headers (keys are among them) and query strings.
"""

from __future__ import annotations

import logging
import sys
import time
from datetime import UTC, datetime
from typing import Any

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_LOGGED_BODY = 16 * 1024  # bytes of a request's body, where bodies are asked for

access_logger = logging.getLogger("thranite.access")


def configure_access_log() -> None:
    """Lines as they are: each is one JSON object."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    access_logger.handlers = [handler]
    access_logger.setLevel(logging.INFO)
    access_logger.propagate = False


class AccessLogMiddleware:
    """The outermost layer: it also sees what is refused."""

    def __init__(self, app: ASGIApp, *, prompts: bool = False) -> None:
        self._app, self._prompts = app, prompts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        line = _Line(scope)
        try:
            await self._app(scope, line.reading(receive) if self._prompts else receive, line.watching(send))
        finally:
            line.write()


class _Line:
    """What is known of one request while it runs."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._began = time.monotonic()
        self._body: bytearray | None = None
        self._status: int | None = None
        self._request_id: str | None = None
        self._bytes = 0
        self._complete = False

    def reading(self, receive: Receive) -> Receive:
        body = self._body = bytearray()

        async def receive_noting() -> Message:
            message = await receive()
            if message["type"] == "http.request" and len(body) < MAX_LOGGED_BODY:
                body.extend(message.get("body", b"")[: MAX_LOGGED_BODY - len(body)])
            return message

        return receive_noting

    def watching(self, send: Send) -> Send:
        async def send_noting(message: Message) -> None:
            kind = message["type"]
            if kind == "http.response.body":
                self._bytes += len(message.get("body", b""))
                self._complete = not message.get("more_body", False)
            elif kind in ("http.response.start", "websocket.http.response.start"):
                self._status = message["status"]
                self._request_id = _header(message, b"x-request-id")
            elif kind == "websocket.accept":
                self._status = 101
            elif kind == "websocket.close":
                self._complete = True
            await send(message)

        return send_noting

    def write(self) -> None:
        scope, client = self._scope, self._scope.get("client")
        fields: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "client": client[0] if client else None,
            "method": scope.get("method", "WEBSOCKET"),
            "path": scope["path"],
            "status": self._status,
            "bytes": self._bytes,
            "seconds": round(time.monotonic() - self._began, 6),
            "complete": self._complete,  # false: the client went before it had all of the answer
            "request_id": self._request_id,
        }
        if self._body is not None:
            fields["body"] = self._body.decode("utf-8", "replace")
        access_logger.info(msgspec.json.encode(fields).decode())


def _header(message: Message, wanted: bytes) -> str | None:
    return next((value.decode("latin-1") for name, value in message.get("headers", ()) if name == wanted), None)
