"""The options of port 8000 that a server process is told of, checked before one starts."""

from __future__ import annotations

import ssl
from importlib.util import find_spec

from thranite.errors import ConfigError
from thranite.ipc.http_options import HttpOptions
from thranite.supervisor.config import ServeConfig


def http_options(config: ServeConfig) -> HttpOptions:
    """Reads the certificate. Raises ConfigError."""
    if config.access_log_prompts and not config.access_log:
        raise ConfigError("--access-log-prompts says what the access log holds: it needs --access-log")
    if config.ssl_keyfile is not None and config.ssl_certfile is None:
        raise ConfigError("--ssl-keyfile is given without --ssl-certfile")
    _check_certificate(config)
    _check_origins(config.allowed_origins)
    if config.otlp_traces_endpoint is not None and find_spec("opentelemetry.sdk") is None:
        raise ConfigError(
            "--otlp-traces-endpoint needs packages that are not installed", "pip install 'thranite[tracing]'"
        )
    return HttpOptions(
        ssl_certfile=config.ssl_certfile,
        ssl_keyfile=config.ssl_keyfile,
        allowed_origins=config.allowed_origins,
        client_timeout=config.client_timeout,
        keep_alive_seconds=config.keep_alive_seconds,
        access_log=config.access_log,
        access_log_prompts=config.access_log_prompts,
        otlp_traces_endpoint=config.otlp_traces_endpoint,
    )


def _check_certificate(config: ServeConfig) -> None:
    if config.ssl_certfile is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(config.ssl_certfile, config.ssl_keyfile, password="")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(
            f"--ssl-certfile {config.ssl_certfile} with --ssl-keyfile {config.ssl_keyfile} cannot be used: {error}",
            "both must be PEM, the key that of the certificate and without a passphrase",
        ) from error


def _check_origins(origins: tuple[str, ...]) -> None:
    for origin in origins:
        scheme, separator, rest = origin.partition("://")
        if origin != "*" and not (scheme in ("http", "https") and separator and rest and "/" not in rest):
            raise ConfigError(f"--allowed-origins {origin!r}: write it as https://host or https://host:port, or *")
