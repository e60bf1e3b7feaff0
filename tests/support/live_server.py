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
import uvicorn
from starlette.types import ASGIApp

from tests.support.fake_engine import TOKENIZER, FakeEngine
from thranite.server.app import build_app
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
def serve(app: ASGIApp) -> Iterator[str]:
    """Serve on a free port of 127.0.0.1; yields the base URL."""
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, log_level="warning", ws="websockets-sansio"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
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
