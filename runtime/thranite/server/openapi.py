"""GET /openapi.json: made of the very structs that decode requests and encode answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

import thranite
from thranite.server.operations import OPERATIONS, Operation

_REFS = "#/components/schemas/{name}"
_FAILURES = {
    "400": "the request cannot be served as sent",
    "401": "the API key is missing or wrong",
    "403": "the API key's class does not allow it",
    "404": "no such model",
    "413": "the body is too large",
    "429": "the queue is full",
    "500": "the server failed",
    "503": "loading, draining, or the engine has ended",
    "504": "the request's timeout passed before its answer began",
}
_DEADLINE: dict[str, Any] = {
    "name": "X-Request-Timeout",
    "in": "header",
    "description": "Seconds from admission within which the answer must be complete; the field timeout may say fewer.",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}


class OpenApiEndpoint:
    """Describes the operations among `routes`, which are asked for at the first request."""

    def __init__(self, routes: Callable[[], Iterable[BaseRoute]], needs_key: bool) -> None:
        self._routes, self._needs_key = routes, needs_key

    async def get(self, _: Request) -> Response:
        return Response(self._body, media_type="application/json")

    @cached_property
    def _body(self) -> bytes:
        paths = {_template(route.path) for route in self._routes() if isinstance(route, Route)}
        return json.dumps(describe_api([o for o in OPERATIONS if o.path in paths], self._needs_key)).encode()


def describe_api(operations: Iterable[Operation], needs_key: bool) -> dict[str, Any]:
    """An OpenAPI 3.1 document."""
    chosen = list(operations)
    types = [kind for o in chosen for kind in (o.request, o.answer, o.events, o.error) if kind is not None]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REFS)
    found = iter(schemas)
    paths: dict[str, Any] = {}
    for operation in chosen:
        parts = {name: next(found) for name in _parts(operation)}
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation, parts)
    for kind in {kind for o in chosen for kind in (o.request,) if hasattr(kind, "off_values")}:
        _show_off_values(components[kind.__name__], kind.off_values)
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "thranite", "version": thranite.__version__},
        "paths": paths,
        "components": {"schemas": components},
    }
    if needs_key:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _parts(operation: Operation) -> list[str]:
    return [name for name in ("request", "answer", "events", "error") if getattr(operation, name) is not None]


def _operation(operation: Operation, schemas: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {operation.media: {"schema": schemas.get("answer", {"type": "string"})}}
    if "events" in schemas:
        events = {"type": "string", "description": "Server-sent events; each one's data is JSON.",
                  "contentMediaType": "application/json", "contentSchema": schemas["events"]}  # fmt: skip
        content["text/event-stream"] = {"schema": events}
    failures = _FAILURES if operation.request is not None else {"401": _FAILURES["401"], "503": _FAILURES["503"]}
    if "{model}" in operation.path:
        failures = {**failures, "404": _FAILURES["404"]}
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": re.sub(r"\W+", "_", f"{operation.method}{operation.path}").strip("_"),
        "responses": {"200": {"description": "the answer", "content": content}}
        | {
            status: {"description": text, "content": {"application/json": {"schema": schemas["error"]}}}
            for status, text in failures.items()
        },
    }
    if "request" in schemas:
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schemas["request"]}}}
    if "{model}" in operation.path:
        described["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]
    if operation.deadline:
        described["parameters"] = [_DEADLINE]
    return described


def _show_off_values(schema: dict[str, Any], off_values: dict[str, tuple[Any, ...]]) -> None:
    """Fields that are known and not supported take these values alone."""
    for name, values in off_values.items():
        schema["properties"][name] = {"enum": [None, *values], "default": None}


def _template(path: str) -> str:
    """starlette's path without converters."""
    return re.sub(r"\{(\w+):\w+\}", r"{\1}", path)
