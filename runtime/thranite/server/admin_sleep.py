"""Sleep on the admin port, under vLLM's names: /sleep and /wake_up, which answer when it is done, and /is_sleeping."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from thranite.errors import InvalidRequest, Rejected
from thranite.ipc.control import ModelPhase
from thranite.server.admin import admin_error, admin_refusal, body_fields, deadline_of, read_body

POLL_SECONDS = 0.02


class SleepStatus(Protocol):
    """READY is awake. Bytes and seconds are of the last sleep and the last waking; `error`: why it sleeps on."""

    @property
    def phase(self) -> ModelPhase: ...
    @property
    def freed_bytes(self) -> int | None: ...
    @property
    def sleep_seconds(self) -> float | None: ...
    @property
    def wake_seconds(self) -> float | None: ...
    @property
    def error(self) -> str | None: ...
    @property
    def settled(self) -> bool:
        """Whether it neither falls asleep nor wakes."""
        ...


class SleepAdmin(Protocol):
    """`name`: which model; None: the first. All raise Rejected where the model is not up, ModelUnknown."""

    def start_sleep(self, name: str | None, seconds: float | None) -> SleepStatus:
        """`seconds`: for open requests to end; None: the server's drain timeout."""
        ...

    def start_wake(self, name: str | None) -> SleepStatus: ...

    def sleep_status(self, name: str | None) -> SleepStatus: ...


def sleep_routes(target: SleepAdmin) -> list[Route]:
    async def settle(name: str | None, status: SleepStatus) -> Response:
        while not status.settled:
            await asyncio.sleep(POLL_SECONDS)
            status = target.sleep_status(name)
        return admin_error(409, status.error, None) if status.error else JSONResponse(_described(status))

    async def sleep(request: Request) -> Response:
        try:
            fields = await _fields(request, ("model", "level", "deadline_seconds"))
            if fields.get("level", 1) not in (1, "1"):
                raise InvalidRequest("level must be 1: weights go to host memory; none drops them", "level")
            name = _model(fields)
            return await settle(name, target.start_sleep(name, deadline_of(fields)))
        except (InvalidRequest, Rejected) as error:
            return admin_refusal(error)

    async def wake_up(request: Request) -> Response:
        try:
            name = _model(await _fields(request, ("model",)))
            return await settle(name, target.start_wake(name))
        except (InvalidRequest, Rejected) as error:
            return admin_refusal(error)

    async def is_sleeping(request: Request) -> Response:
        try:
            status = target.sleep_status(_model(await _fields(request, ("model",))))
        except (InvalidRequest, Rejected) as error:
            return admin_refusal(error)
        return JSONResponse({"is_sleeping": status.phase is not ModelPhase.READY, **_described(status)})

    return [
        Route("/sleep", sleep, methods=["POST"]),
        Route("/wake_up", wake_up, methods=["POST"]),
        Route("/is_sleeping", is_sleeping, methods=["GET"]),
    ]


async def _fields(request: Request, known: Collection[str]) -> dict[str, Any]:
    """Of the body, and of the query, where vLLM's clients put them."""
    query: dict[str, Any] = dict(request.query_params)
    if str(query.get("deadline_seconds", "")).replace(".", "", 1).isdecimal():
        query["deadline_seconds"] = float(query["deadline_seconds"])
    fields = {**body_fields(await read_body(request), known), **query}
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise InvalidRequest(f"unknown parameter {unknown[0]!r}; known: {', '.join(known)}", unknown[0])
    return fields


def _model(fields: dict[str, Any]) -> str | None:
    name = fields.get("model")
    if name is not None and not isinstance(name, str):
        raise InvalidRequest(f"model must be a text, got {name!r}", "model")
    return name


def _described(status: SleepStatus) -> dict[str, Any]:
    return {
        "phase": "awake" if status.phase is ModelPhase.READY else str(status.phase),
        "freed_bytes": status.freed_bytes,
        "sleep_seconds": status.sleep_seconds,
        "wake_seconds": status.wake_seconds,
    }
