"""The outermost ASGI layer of a server process: what is answered while the engine loads, drains or is dead.

It counts open requests, which a drain waits for. While the server drains every response closes its connection, so
that clients come back by way of the load balancer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from starlette.datastructures import MutableHeaders
from starlette.routing import request_response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from thranite.errors import EngineDead
from thranite.server.auth import ApiKeyMiddleware
from thranite.server.errors import ErrorAnswer, describe, error_answer
from thranite.server.keys import ApiKey
from thranite.server.metrics_source import MetricsSource
from thranite.server.models import refuse_socket, respond

RETRY_SECONDS = "5"
SEND_BODY = "thranite.send_body"  # in the scope: the server's own send, past what only looks at the response's start
COUNT_REQUESTS = "thranite.count_requests"  # in the scope of a WebSocket: call with +1 and -1


class Gate:
    """`app` is None while the model loads. `keys`: of which metrics ask for one then, too. `on_change` is called
    whenever `open_requests` changed."""

    def __init__(self, metrics: MetricsSource, on_change: Callable[[], None], keys: Sequence[ApiKey] = ()) -> None:
        self.app: ASGIApp | None = None
        self.dead: EngineDead | None = None
        self.draining = False
        self.open_requests = 0
        self._metrics: ASGIApp = request_response(metrics.endpoint)
        if keys:
            self._metrics = ApiKeyMiddleware(self._metrics, keys)
        self._on_change = on_change

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._socket(scope, receive, send)
            return
        self._count(1)
        try:
            await self._answer({**scope, SEND_BODY: send}, receive, self._closing(send))
        finally:
            self._count(-1)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.app is not None and self.dead is None:
            await self.app(scope, receive, send)
        elif scope["path"] == "/metrics" and scope["method"] in ("GET", "HEAD") and self.app is None:
            await self._metrics(scope, receive, send)
        else:
            answer = self._loading() if self.dead is None else describe(self.dead)
            await respond(answer, scope["path"])(scope, receive, send)

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Not the socket counts as open, but each request on it: its endpoint counts them."""
        if self.app is None or self.dead is not None:
            answer = self._loading() if self.dead is None else describe(self.dead)
            await refuse_socket(answer)(scope, receive, send)
            return
        await self.app({**scope, COUNT_REQUESTS: self._count}, receive, send)

    def _loading(self) -> ErrorAnswer:
        return error_answer(
            503, "The model is loading", "server_error", code="loading", headers={"retry-after": RETRY_SECONDS}
        )

    def _closing(self, send: Send) -> Send:
        async def send_closing(message: Message) -> None:
            if message["type"] == "http.response.start" and (self.draining or self.dead is not None):
                MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        return send_closing

    def _count(self, by: int) -> None:
        self.open_requests += by
        self._on_change()
