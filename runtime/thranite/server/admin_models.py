"""Models on the admin port: which there are, loading and unloading. Both answer at once; /models tells the progress."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from thranite.errors import InvalidRequest, Rejected
from thranite.ipc.control import AddModel, ModelState
from thranite.server.admin import admin_refusal, body_fields, deadline_of, read_body
from thranite.server.model_options import ModelDefaults


class ModelAdmin(Protocol):
    """The models of a server as its administrator sees them."""

    def model_states(self) -> Sequence[ModelState]: ...

    def load_model(self, definition: AddModel) -> ModelState:
        """Raises Rejected where that cannot be now."""
        ...

    def unload_model(self, name: str, seconds: float | None) -> ModelState:
        """`seconds`: for open requests to end. Raises Rejected or ModelUnknown."""
        ...


def model_routes(target: ModelAdmin, defaults: ModelDefaults) -> list[Route]:
    async def models(_: Request) -> Response:
        return JSONResponse({"models": [_described(state) for state in target.model_states()]})

    async def load(request: Request) -> Response:
        try:
            fields = body_fields(await read_body(request))
            options = {key: value for key, value in fields.items() if key not in ("name", "model")}
            definition = defaults.define(_text(fields, "name"), _text(fields, "model"), options)
            return JSONResponse(_described(target.load_model(definition)), 202)
        except (InvalidRequest, Rejected) as error:
            return admin_refusal(error)

    async def unload(request: Request) -> Response:
        try:
            fields = body_fields(await read_body(request), ("name", "deadline_seconds"))
            state = target.unload_model(_text(fields, "name"), deadline_of(fields))
            return JSONResponse(_described(state), 202)
        except (InvalidRequest, Rejected) as error:
            return admin_refusal(error)

    return [
        Route("/models", models, methods=["GET"]),
        Route("/models/load", load, methods=["POST"]),
        Route("/models/unload", unload, methods=["POST"]),
    ]


def _described(state: ModelState) -> dict[str, Any]:
    return {field: msgspec.to_builtins(getattr(state, field)) for field in state.__struct_fields__}


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} must be a text, got {value!r}", name)
    return value
