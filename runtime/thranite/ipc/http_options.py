"""What a server process's HTTP side is told besides the API: transport, log, origins, traces."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpOptions:
    """Options of port 8000. The admin port has none of them."""

    ssl_certfile: str | None = None  # None: plain HTTP
    ssl_keyfile: str | None = None  # None: the certificate's file holds the key
    allowed_origins: tuple[str, ...] = ()  # of pages elsewhere that may call; "*" is any
    client_timeout: float = 30.0  # seconds
    keep_alive_seconds: int = 75  # between two requests of a connection
    access_log: bool = False
    access_log_prompts: bool = False
    otlp_traces_endpoint: str | None = None
