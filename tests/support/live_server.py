"""The real application on a real uvicorn, in a thread, for real clients."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import openai
from starlette.types import ASGIApp

from tests.support.fake_engine import TOKENIZER, FakeEngine
from thranite.ipc.http_options import HttpOptions
from thranite.server.app import build_app
from thranite.server.http import make_http_server
from thranite.server.settings import ServerSettings
from thranite.text.tokenizer import Tokenizer

MODEL = "tiny"


@dataclass(frozen=True, slots=True)
class LiveServer:
    """A running server and two clients of it."""

    engine: FakeEngine
    url: str
    openai: openai.OpenAI
    http: httpx.Client


@contextmanager
def serve(app: ASGIApp, options: HttpOptions | None = None, send_buffer: int | None = None) -> Iterator[str]:
    """Serve on a free port of 127.0.0.1; yields the base URL. `send_buffer`: the kernel's, in bytes."""
    options = options or HttpOptions()
    server = make_http_server(app, options)
    server.config.lifespan = "auto"  # a server process runs the application's itself
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if send_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        listener.listen()
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            yield f"{'https' if options.ssl_certfile else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)


@contextmanager
def live_server(
    engine: FakeEngine | None = None, tokenizer: Tokenizer | None = TOKENIZER, **settings: Any
) -> Iterator[LiveServer]:
    engine = engine or FakeEngine()
    app = build_app(engine, tokenizer, ServerSettings(served_model_names=(MODEL,), **settings))
    with (
        serve(app) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=20) as client,
        httpx.Client(base_url=url, timeout=20) as http,
    ):
        yield LiveServer(engine, url, client, http)
