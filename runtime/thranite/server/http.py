"""uvicorn as thranite runs it: on sockets that are bound already, with signals left to the supervisor."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib.util import find_spec

import uvicorn
from starlette.types import ASGIApp

CLOSE_SECONDS = 2  # responses still open at the end; their requests have been ended before


class HTTPServer(uvicorn.Server):
    """Ends when `should_exit` is set, never by a signal."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def make_http_server(app: ASGIApp, *, access_log: bool) -> HTTPServer:
    config = uvicorn.Config(
        app,
        access_log=access_log,
        log_config=None,
        log_level="info" if access_log else "warning",
        lifespan="off",
        server_header=False,
        ws="websockets-sansio" if find_spec("websockets") else "none",
        ws_ping_interval=20.0,
        timeout_graceful_shutdown=CLOSE_SECONDS,
        backlog=2048,
    )
    return HTTPServer(config)
