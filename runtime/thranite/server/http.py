"""uvicorn as thranite runs it: on sockets that are bound already, with signals left to the supervisor."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Literal

import uvicorn
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from thranite.ipc.http_options import HttpOptions
from thranite.server.access_log import AccessLogMiddleware, configure_access_log
from thranite.server.http_protocol import GuardedHttp, guarded
from thranite.server.origins import SocketOriginMiddleware

CLOSE_SECONDS = 2  # responses still open at the end; their requests have been ended before


class HTTPServer(uvicorn.Server):
    """Ends when `should_exit` is set, never by a signal."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def make_http_server(app: ASGIApp, options: HttpOptions, max_message_bytes: int = 2**20) -> HTTPServer:
    """`max_message_bytes`: of one WebSocket message."""
    if options.allowed_origins:
        app = CORSMiddleware(
            app,
            allow_origins=options.allowed_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    app = SocketOriginMiddleware(app, options.allowed_origins)
    if options.access_log:
        configure_access_log()
        app = AccessLogMiddleware(app, prompts=options.access_log_prompts)
    config = uvicorn.Config(
        app,
        http=guarded(GuardedHttp, options.client_timeout),
        ws=_socket_protocol(options.client_timeout),
        ws_max_size=max_message_bytes,
        ws_ping_interval=20.0,
        ws_per_message_deflate=False,  # a token's message is smaller than what its compression costs
        access_log=False,
        log_config=None,
        log_level="warning",
        lifespan="off",
        server_header=False,
        timeout_keep_alive=options.keep_alive_seconds,
        ssl_certfile=options.ssl_certfile,
        ssl_keyfile=options.ssl_keyfile,
        timeout_graceful_shutdown=CLOSE_SECONDS,
        backlog=2048,
    )
    return HTTPServer(config)


def _socket_protocol(seconds: float) -> type[asyncio.Protocol] | Literal["none"]:
    """Without the websockets package a handshake is an ordinary request for an unknown page."""
    if find_spec("websockets") is None:
        return "none"
    from thranite.server.socket_protocol import GuardedSocket

    return guarded(GuardedSocket, seconds)
