"""Port 8000 against clients that are slow, hostile, or pages of other sites; TLS; the access log."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from tests.runtime.server.test_failures import until
from tests.support.fake_engine import TOKENIZER, FakeEngine, Script, says
from tests.support.live_server import MODEL, serve
from thranite.errors import ConfigError
from thranite.ipc.http_options import HttpOptions
from thranite.request import EngineRequest, SequenceDelta
from thranite.server.access_log import access_logger
from thranite.server.app import build_app
from thranite.server.http_protocol import MAX_HEAD_BYTES
from thranite.server.settings import ServerSettings
from thranite.supervisor.config import ServeConfig
from thranite.supervisor.http_options import http_options

COMPLETION: dict[str, Any] = {"model": MODEL, "prompt": "a secret prompt"}


@contextmanager
def serving(engine: FakeEngine | None = None, **options: Any) -> Iterator[str]:
    app = build_app(engine or FakeEngine(), TOKENIZER, ServerSettings(served_model_names=(MODEL,)))
    with serve(app, HttpOptions(**options), send_buffer=8192) as url:
        yield url


def endless() -> Script:
    """More text than any buffer holds."""

    def script(request: EngineRequest) -> list[SequenceDelta]:
        tokens = tuple(TOKENIZER.encode("x" * 50, add_special_tokens=False))
        return [SequenceDelta(request.request_id, 0, tokens)] * 100_000

    return script


def raw(url: str, receive_buffer: int | None = None) -> socket.socket:
    connection = socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.connect(("127.0.0.1", int(url.rsplit(":", 1)[1])))
    connection.settimeout(10)
    return connection


def ended(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    data = b""
    try:
        while chunk := connection.recv(65536):
            data += chunk
    except ConnectionResetError:
        return data
    return data


def ask(connection: socket.socket) -> bytes:
    """One answer of a connection that stays open."""
    connection.sendall(b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n")
    return connection.recv(65536)


# --- idle connections


def test_an_idle_connection_is_kept_longer_than_proxies_pause() -> None:
    """By default; uvicorn's own 5 s are less than what proxies and clients keep connections for."""
    with serving() as url:
        connection = raw(url)
        assert ask(connection).startswith(b"HTTP/1.1 200")
        time.sleep(5.5)
        assert ask(connection).startswith(b"HTTP/1.1 200")
        ending = time.monotonic()
    with connection:  # at the server's end it is closed at once
        assert connection.recv(1) == b""
        assert time.monotonic() - ending < 1


def test_an_idle_connection_ends_after_its_time() -> None:
    with serving(keep_alive_seconds=1) as url, raw(url) as connection:
        ask(connection)
        idle_since = time.monotonic()
        assert connection.recv(1) == b""
        assert 0.9 < time.monotonic() - idle_since < 5


def test_blank_lines_do_not_keep_a_connection() -> None:
    with serving(client_timeout=0.5) as url, raw(url) as connection:
        ask(connection)
        connection.sendall(b"\r\n")
        assert ended(connection) == b""
        with raw(url) as patient:
            ask(patient)
            patient.sendall(b"\r\n")
            assert ask(patient).startswith(b"HTTP/1.1 200")


# --- slow and hostile clients


def test_a_client_that_stops_reading_is_dropped_and_its_request_aborted() -> None:
    engine = FakeEngine(endless(), max_model_len=10**9)
    with serving(engine, client_timeout=0.5) as url:
        body = json.dumps({**COMPLETION, "stream": True, "max_tokens": 10**8}).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
        with raw(url, receive_buffer=4096) as connection:
            connection.sendall(head + body)
            until(lambda: engine.aborted == [request.request_id for request in engine.submitted] != [])


def test_a_socket_that_stops_reading_is_dropped_and_its_requests_aborted() -> None:
    engine = FakeEngine(endless(), max_model_len=10**9)
    with (
        serving(engine, client_timeout=0.5) as url,
        raw(url, receive_buffer=4096) as connection,
        connect(
            url.replace("http", "ws") + "/ws/generate", sock=connection, max_queue=1, close_timeout=0.1
        ) as websocket,
    ):
        websocket.send(json.dumps({"type": "generate", "id": "a", "prompt": "x", "max_tokens": 10**8}))
        until(lambda: engine.aborted == [request.request_id for request in engine.submitted] != [])


def test_a_head_that_never_ends_is_refused_and_one_that_never_comes_is_dropped() -> None:
    with serving(client_timeout=0.5) as url:
        with raw(url) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n")
            for _ in range(MAX_HEAD_BYTES // 1000 + 1):
                connection.sendall(b"x-header: " + b"a" * 1000 + b"\r\n")
            assert b"431" in ended(connection).split(b"\r\n")[0]
        for beginning in (b"", b"GET / HTTP/1.1\r\nhost: x\r\n"):
            with raw(url) as connection:
                connection.sendall(beginning)
                began = time.monotonic()
                assert ended(connection) == b""
                assert 0.3 < time.monotonic() - began < 5
        assert httpx.get(url + "/health").status_code == 200


def test_a_head_that_is_too_large_is_refused_also_if_it_comes_at_once(caplog: pytest.LogCaptureFixture) -> None:
    head = b"GET /health HTTP/1.1\r\nhost: x\r\nx-header: %s\r\n"
    with serving() as url:
        for rest in (b"\r\n", b"connection: upgrade\r\nupgrade: websocket\r\n\r\n", b""):
            with raw(url) as connection:
                with suppress(OSError):  # the server may have closed by then
                    connection.sendall(head % (b"a" * MAX_HEAD_BYTES) + rest + b"x-more: a\r\n" * 100_000)
                    connection.shutdown(socket.SHUT_WR)
                assert ended(connection).startswith(b"HTTP/1.1 431 ")
        with raw(url) as connection:
            connection.sendall(head % (b"a" * (MAX_HEAD_BYTES - 100)) + b"connection: close\r\n\r\n")
            assert ended(connection).startswith(b"HTTP/1.1 200 ")
    assert not [line for line in caplog.records if line.name == "asyncio" and line.levelno >= logging.ERROR]


def test_the_end_of_a_large_body_is_no_part_of_the_next_head() -> None:
    body = json.dumps({**COMPLETION, "user": "u" * 3 * MAX_HEAD_BYTES}).encode()
    first = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    with serving() as url, raw(url) as connection:
        connection.sendall(first + b"GET /health HTTP/1.1\r\nhost: x\r\n")
        connection.sendall(b"connection: close\r\n\r\n")
        assert ended(connection).count(b"HTTP/1.1 200 ") == 2


def test_a_body_that_stops_coming_is_dropped_and_one_that_comes_slowly_is_not() -> None:
    body = json.dumps(COMPLETION).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
    with serving(client_timeout=1) as url:
        with raw(url) as connection:
            connection.sendall(head + body[:5])
            assert ended(connection) == b""
        with raw(url) as connection:
            connection.sendall(head)
            for part in (body[:5], body[5:10], body[10:15], body[15:]):
                time.sleep(0.35)
                connection.sendall(part)
            assert ended(connection).startswith(b"HTTP/1.1 200 ")


def test_an_idle_socket_outlives_the_time_of_heads_and_bodies() -> None:
    with serving(client_timeout=1) as url, connect(url.replace("http", "ws") + "/ws/generate") as websocket:
        time.sleep(1.4)
        websocket.send(json.dumps({"type": "generate", "id": "a", "prompt": "x", "stream": False}))
        assert json.loads(websocket.recv(timeout=10))["type"] == "done"


def test_a_keep_alive_connection_outlives_the_time_of_a_head() -> None:
    with serving(client_timeout=0.4) as url, httpx.Client(base_url=url) as http:
        for _ in range(3):
            assert http.get("/health").status_code == 200
            time.sleep(0.3)


# --- other sites' pages


def test_other_sites_pages_may_not_call_unless_they_are_named() -> None:
    asks = {"origin": "https://a.example", "access-control-request-method": "POST"}
    with serving() as url:
        for answer in (httpx.options(url + "/v1/completions", headers=asks), httpx.get(url + "/health", headers=asks)):
            assert not [name for name in answer.headers if name.startswith("access-control")]
        with pytest.raises(InvalidStatus, match="403"):
            connect(url.replace("http", "ws") + "/ws/generate", origin=Origin("https://a.example"))
        with connect(url.replace("http", "ws") + "/ws/generate", origin=Origin(url)):
            pass
    with serving(allowed_origins=("https://a.example",)) as url:
        preflight = httpx.options(url + "/v1/completions", headers=asks)
        assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, "https://a.example")
        other = httpx.options(url + "/v1/completions", headers={**asks, "origin": "https://b.example"})
        assert "access-control-allow-origin" not in other.headers
        answered = httpx.post(url + "/v1/completions", json=COMPLETION, headers={"origin": "https://a.example"})
        assert answered.headers["access-control-allow-origin"] == "https://a.example"
        with connect(url.replace("http", "ws") + "/ws/generate", origin=Origin("https://a.example")):
            pass


# --- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    directory = Path(tmp_path_factory.mktemp("tls"))
    cert, key = str(directory / "cert.pem"), str(directory / "key.pem")
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    command += ["-keyout", key, "-out", cert, "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


def test_tls(certificate: tuple[str, str]) -> None:
    cert, key = certificate
    trusting = ssl.create_default_context(cafile=cert)
    with serving(ssl_certfile=cert, ssl_keyfile=key) as url:
        assert url.startswith("https://")
        with httpx.Client(base_url=url, verify=trusting) as http:
            assert http.get("/health").status_code == 200
            with http.stream("POST", "/v1/completions", json={**COMPLETION, "stream": True}) as answer:
                assert b"".join(answer.iter_bytes()).endswith(b"data: [DONE]\n\n")
        with pytest.raises(httpx.ConnectError):
            httpx.get(url + "/health")
        assert asyncio.run(generated(url.replace("http", "ws") + "/ws/generate", trusting))["type"] == "done"


async def generated(url: str, trusting: ssl.SSLContext) -> dict[str, Any]:
    """websockets' client of threads loses a handshake in some thousands: it reads and writes one OpenSSL object at
    once, which OpenSSL does not allow (cpython issue 76714)."""
    async with connect_async(url, ssl=trusting) as websocket:
        await websocket.send(json.dumps({"type": "generate", "id": "a", "prompt": "x", "stream": False}))
        answer: dict[str, Any] = json.loads(await websocket.recv())
        return answer


def test_a_certificate_that_cannot_be_used_is_named_before_anything_starts(
    certificate: tuple[str, str], tmp_path: Path
) -> None:
    cert, key = certificate
    assert http_options(ServeConfig(ssl_certfile=cert, ssl_keyfile=key)).ssl_certfile == cert
    (tmp_path / "empty").write_text("")
    wrongs: tuple[dict[str, Any], ...] = (
        {"ssl_certfile": cert},
        {"ssl_certfile": str(tmp_path / "none"), "ssl_keyfile": key},
        {"ssl_certfile": cert, "ssl_keyfile": str(tmp_path / "empty")},
    )
    for wrong in wrongs:
        with pytest.raises(ConfigError, match="--ssl-certfile"):
            http_options(ServeConfig(**wrong))
    with pytest.raises(ConfigError, match="without --ssl-certfile"):
        http_options(ServeConfig(ssl_keyfile=key))
    with pytest.raises(ConfigError, match="needs --access-log"):
        http_options(ServeConfig(access_log_prompts=True))
    for origin in ("a.example", "https://a.example/x", "ftp://a"):
        with pytest.raises(ConfigError, match="--allowed-origins"):
            http_options(ServeConfig(allowed_origins=(origin,)))


# --- the access log


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("prompts", [False, True])
def test_the_access_log(capsys: pytest.CaptureFixture[str], prompts: bool) -> None:
    headers = {"x-request-id": "mine", "authorization": "Bearer a-secret-key"}
    engine = FakeEngine(says("a secret answer"))
    with serving(engine, access_log=True, access_log_prompts=prompts) as url, httpx.Client(base_url=url) as http:
        http.post("/v1/completions?token=a-secret-query", json=COMPLETION, headers=headers)
        http.get("/nothing")
        engine.hold_after = 1
        with http.stream("POST", "/v1/completions", json={**COMPLETION, "stream": True}):
            until(lambda: len(engine.submitted) == 2)
    access_logger.handlers = []
    found = sorted(lines(capsys), key=lambda line: (line["method"], not line["complete"]))
    missing, whole, left = found
    assert (whole["method"], whole["path"], whole["status"]) == ("POST", "/v1/completions", 200)
    assert (whole["request_id"], whole["client"], whole["complete"]) == ("mine", "127.0.0.1", True)
    assert whole["bytes"] > 100
    assert whole["seconds"] > 0
    assert (missing["status"], missing["path"]) == (404, "/nothing")
    assert (left["status"], left["complete"]) == (200, False)
    text = json.dumps(found)
    assert "secret-key" not in text
    assert "secret-query" not in text
    assert "secret answer" not in text
    assert ("secret prompt" in text) == prompts
