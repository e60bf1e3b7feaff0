"""The OpenAI wire as one starlette application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute

from thranite.engine.client import EngineClient
from thranite.server.auth import ApiKeyMiddleware
from thranite.server.chat import ChatEndpoint
from thranite.server.completions import CompletionEndpoint
from thranite.server.directory import ModelDirectory
from thranite.server.embeddings import EmbeddingsEndpoint
from thranite.server.errors import describe, error_answer
from thranite.server.messages import CountTokensEndpoint, MessagesEndpoint
from thranite.server.models import ModelEndpoints, respond
from thranite.server.openapi import OpenApiEndpoint
from thranite.server.page import page
from thranite.server.plain import GenerateEndpoint
from thranite.server.request_id import RequestIdMiddleware
from thranite.server.responses import ResponsesEndpoint
from thranite.server.settings import ServerSettings
from thranite.server.socket import GenerateSocket
from thranite.server.tokens import DetokenizeEndpoint, TokenizeEndpoint
from thranite.text.tokenizer import Tokenizer


def build_app(
    client: EngineClient,
    tokenizer: Tokenizer | None,
    settings: ServerSettings,
    extra_routes: Sequence[BaseRoute] = (),
    models: ModelDirectory | None = None,
) -> Starlette:
    """The application of port 8000, for one event loop. `client` must be connected: its `info` is read here.

    `extra_routes` (such as /metrics) come behind the same API keys. Without a tokenizer only token ids are served.
    `models`: where others are or will be; None: `client`'s is the only one.
    """
    models = models or ModelDirectory(settings.served_model_names, settings.tokenizer_threads)
    models.serve(client, tokenizer, settings)
    middleware = [Middleware(RequestIdMiddleware)]
    if settings.api_keys:
        middleware.append(Middleware(ApiKeyMiddleware, keys=settings.api_keys))
    description = OpenApiEndpoint(lambda: app.routes, needs_key=bool(settings.api_keys))
    own = [Route("/openapi.json", description.get, methods=["GET"]), Route("/", page, methods=["GET"])]
    app = Starlette(
        routes=[*_routes(models), *own, *extra_routes],
        middleware=middleware,
        exception_handlers={HTTPException: _http_error, Exception: _unforeseen},
        lifespan=lambda _: _lifespan(models),
    )
    return app


def _routes(models: ModelDirectory) -> list[BaseRoute]:
    pages = ModelEndpoints(models)
    return [
        Route("/v1/completions", CompletionEndpoint(models), methods=["POST"]),
        Route("/v1/chat/completions", ChatEndpoint(models), methods=["POST"]),
        Route("/v1/responses", ResponsesEndpoint(models), methods=["POST"]),
        Route("/v1/messages", MessagesEndpoint(models), methods=["POST"]),
        Route("/v1/messages/count_tokens", CountTokensEndpoint(models), methods=["POST"]),
        Route("/v1/embeddings", EmbeddingsEndpoint(models), methods=["POST"]),
        Route("/generate", GenerateEndpoint(models), methods=["POST"]),
        WebSocketRoute("/ws/generate", GenerateSocket(models).serve),
        Route("/tokenize", TokenizeEndpoint(models), methods=["POST"]),
        Route("/detokenize", DetokenizeEndpoint(models), methods=["POST"]),
        Route("/v1/models", pages.list, methods=["GET"]),
        Route("/v1/models/{model:path}", pages.get, methods=["GET"]),
        Route("/health", pages.health, methods=["GET"]),
    ]


@asynccontextmanager
async def _lifespan(models: ModelDirectory) -> AsyncIterator[None]:
    try:
        yield
    finally:
        models.close()


async def _http_error(request: Request, error: Exception) -> Response:
    """404 and 405 in the shape of other errors."""
    if not isinstance(error, HTTPException):
        raise error
    messages = {
        404: f"Unknown request URL: {request.method} {request.url.path}",
        405: f"Not allowed to {request.method} {request.url.path}",
    }
    message = messages.get(error.status_code, error.detail)
    answer = error_answer(error.status_code, message, "invalid_request_error", headers=error.headers)
    return respond(answer, request.url.path)


async def _unforeseen(request: Request, error: Exception) -> Response:
    return respond(describe(error), request.url.path)
