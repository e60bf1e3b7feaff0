"""GET /v1/models, /v1/models/{id} and /health."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from thranite.errors import EngineDead
from thranite.server.directory import ModelDirectory
from thranite.server.error_shape import error_body
from thranite.server.errors import ErrorAnswer, ModelUnknown, describe
from thranite.server.wire.model import ModelCard, ModelList, ModelStatus


class ModelEndpoints:
    """Read-only pages about what is served."""

    def __init__(self, models: ModelDirectory) -> None:
        self._models = models

    async def list(self, _: Request) -> Response:
        return _json(ModelList([self._card(name) for name in self._models.names]))

    async def get(self, request: Request) -> Response:
        name = request.path_params["model"]
        known = self._models.names
        if name not in known:
            return respond(describe(ModelUnknown(name, known)))
        return _json(self._card(name))

    async def health(self, _: Request) -> Response:
        """200 while the first model's engine runs. Probes that need more (readiness, stalls) ask the admin port."""
        try:
            await self._models.first.client.stats()
        except EngineDead as error:
            return respond(describe(error))
        return Response(b"{}", media_type="application/json")

    def _card(self, name: str) -> ModelCard:
        models, state = self._models, self._models.state(name)
        status = ModelStatus(state.phase, state.stage, state.progress, state.cause, state.retry_seconds)
        return ModelCard(name, models.created(name), models.root(name), models.max_model_len(name), status)


def respond(answer: ErrorAnswer, path: str = "") -> Response:
    """`path`: of the request, whose clients may expect a shape of their own."""
    return Response(error_body(answer, path), answer.status, dict(answer.headers), "application/json")


def refuse_socket(answer: ErrorAnswer) -> ASGIApp:
    """Answers a WebSocket's handshake with an error, where the server can; else it closes the socket."""

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        if "websocket.http.response" in scope.get("extensions", {}):
            await respond(answer)(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1013, "reason": answer.body.error.message[:120]})

    return refuse


def _json(value: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
