"""The admin port: probes, metrics, drain. It runs in the supervisor.

There its answers stay true when a server process or the engine hangs or is still loading: it watches both from outside
and shares no event loop with requests. What it answers is decided by an `AdminTarget`; this module is its HTTP form.
"""

from __future__ import annotations

import hmac
import sys
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from thranite.errors import InvalidRequest, Rejected
from thranite.server.errors import ModelUnknown
from thranite.server.metrics_source import MetricsSource

PROBES = ("/startupz", "/readyz", "/livez")  # kubelet sends no key
MAX_BODY = 4096


@dataclass(frozen=True, slots=True)
class Probe:
    """`reason` says what is missing, or what is well."""

    ok: bool
    reason: str


@dataclass(frozen=True, slots=True)
class DrainStatus:
    """`drained`: new requests are refused and none is open. `deadline_seconds`: until running ones are cut off."""

    draining: bool
    drained: bool = False
    open_requests: int = 0
    deadline_seconds: float | None = None


class AdminTarget(Protocol):
    """The server as its administrator sees it."""

    def startup_probe(self) -> Probe:
        """Weights are loaded and the API has answered; once true, true for good."""
        ...

    def ready_probe(self) -> Probe:
        """Serving and not draining."""
        ...

    def live_probe(self) -> Probe:
        """The engine steps whenever it has work. Never fails for load or loading."""
        ...

    def drain_status(self) -> DrainStatus: ...

    def start_drain(self, deadline_seconds: float | None) -> DrainStatus:
        """Idempotent. None: the server's own drain timeout. Raises Rejected before the server is up."""
        ...

    def stop_drain(self) -> DrainStatus:
        """Serve again. Raises Rejected when the server is terminating."""
        ...


def build_admin_app(
    target: AdminTarget, metrics: MetricsSource, key: str | None, more: Sequence[Route] = ()
) -> Starlette:
    """`key`: what callers of everything but the probes must send as a bearer token; None: nothing. `more`: routes."""

    async def drain(request: Request) -> Response:
        try:
            if request.method == "POST":
                return _status(
                    target.start_drain(deadline_of(body_fields(await read_body(request), ("deadline_seconds",))))
                )
            if request.method == "DELETE":
                return _status(target.stop_drain())
        except InvalidRequest as error:
            return admin_error(400, error.message, error.param)
        except Rejected as error:
            return admin_error(409, error.message, None)
        return _status(target.drain_status())

    routes = [
        Route("/startupz", _probe(target.startup_probe)),
        Route("/readyz", _probe(target.ready_probe)),
        Route("/livez", _probe(target.live_probe)),
        Route("/metrics", metrics.endpoint),
        Route("/drain", drain, methods=["GET", "POST", "DELETE"]),
        *more,
    ]
    middleware = [] if key is None else [Middleware(_KeyCheck, key=key)]
    return Starlette(routes=routes, middleware=middleware)


def _probe(ask: Callable[[], Probe]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        probe = ask()
        return PlainTextResponse(probe.reason + "\n", status_code=200 if probe.ok else 503)

    return endpoint


async def read_body(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise InvalidRequest(f"the body is larger than {MAX_BODY} bytes")
    return body


def body_fields(body: bytes, known: Collection[str] | None = None) -> dict[str, Any]:
    """A JSON object; of the fields in `known` alone, if that is given. An empty body is one without fields."""
    if not body.strip():
        return {}
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InvalidRequest("the body must be a JSON object")
    unknown = [] if known is None else sorted(set(fields) - set(known))
    if unknown:
        raise InvalidRequest(f"unknown field {unknown[0]!r}; known: {', '.join(known or ())}", unknown[0])
    return fields


def deadline_of(fields: dict[str, Any]) -> float | None:
    """`deadline_seconds`; None: not given."""
    seconds = fields.get("deadline_seconds")
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= sys.float_info.max:
        raise InvalidRequest(f"deadline_seconds must be 0 or more seconds, got {seconds!r}", "deadline_seconds")
    return float(seconds)


def _status(status: DrainStatus) -> Response:
    return JSONResponse(asdict(status))


def admin_error(code: int, message: str, param: str | None) -> Response:
    return JSONResponse({"error": {"message": message, "param": param}}, status_code=code)


def admin_refusal(error: InvalidRequest | Rejected) -> Response:
    """409 where it cannot be now, 404 for a model that is not there, else 400 with the field."""
    if isinstance(error, Rejected):
        return admin_error(409, error.message, None)
    return admin_error(404 if isinstance(error, ModelUnknown) else 400, error.message, error.param)


class _KeyCheck:
    """Refuses what does not carry the admin key, probes excepted."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app, self._expected = app, f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in PROBES and not self._allowed(scope):
            answer = admin_error(401, "the admin key is missing or wrong", None)
            await answer(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _allowed(self, scope: Scope) -> bool:
        sent = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        return hmac.compare_digest(sent, self._expected)
