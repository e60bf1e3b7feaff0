"""`thranite serve` with TLS, keys, origins and its access log, as curl sees it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.running_server import running_server
from tests.support.waiting import wait_for

CURL, OPENSSL = shutil.which("curl"), shutil.which("openssl")
pytestmark = pytest.mark.skipif(CURL is None or OPENSSL is None, reason="no curl or openssl on this machine")
BODY = '{"model": "tiny", "prompt": [5, 6], "max_tokens": 3, "ignore_eos": true}'


def curl(*arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [str(CURL), "--silent", "--show-error", "--max-time", "20", *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stdout


def test_tls_keys_and_origins_apply_to_the_api_alone(tmp_path: Path) -> None:
    cert, key, keys = (tmp_path / name for name in ("cert.pem", "key.pem", "keys"))
    subprocess.run(
        [str(OPENSSL), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-keyout", str(key), "-out", str(cert), "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    keys.write_text("first-key\nsecond-key\n")
    options: dict[str, Any] = {
        "served_model_name": ["tiny"],
        "ssl_certfile": str(cert),
        "ssl_keyfile": str(key),
        "api_key_file": str(keys),
        "allowed_origins": ["https://a.example"],
        "access_log": True,
    }
    with running_server(tmp_path / "run", engine={"model": "tiny"}, **options) as server:
        server.wait_ready()  # the admin port: neither TLS nor keys
        url = server.api_url + "/v1/completions"
        assert url.startswith("https://")
        trust = ("--cacert", str(cert))
        refused = curl(*trust, "-o", "/dev/null", "-w", "%{http_code}", "-d", BODY, url)
        assert refused == "401"
        for name in ("first-key", "second-key"):
            answer = curl(
                *trust, "-H", f"authorization: Bearer {name}", "-H", "x-request-id: from-curl", "-i", "-d", BODY, url
            )
            head, _, body = answer.partition("\n\n" if "\r\n" not in answer else "\r\n\r\n")
            assert "x-request-id: from-curl" in head.lower()
            assert json.loads(body)["usage"]["completion_tokens"] == 3
        streamed = curl(*trust, "-N", "-H", "x-api-key: first-key", "-d", BODY[:-1] + ', "stream": true}', url)
        assert streamed.rstrip().endswith("data: [DONE]")
        preflight = curl(*trust, "-i", "-X", "OPTIONS", "-H", "origin: https://a.example",
                         "-H", "access-control-request-method: POST", url)  # fmt: skip
        assert "access-control-allow-origin: https://a.example" in preflight.lower()
        curl("-d", BODY, url, code=60)  # the certificate is not trusted
        lines = wait_for(lambda: [json.loads(line) for line in server.log().splitlines() if line.startswith('{"time"')]
                         if server.log().count('"POST"') >= 3 else [], "the access log")  # fmt: skip
        assert {line["request_id"] for line in lines} >= {"from-curl"}
        assert "first-key" not in server.log()


def test_a_certificate_that_cannot_be_read_ends_serve_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("nonsense")
    with running_server(tmp_path / "run", engine={"model": "tiny"}, ssl_certfile=str(tmp_path / "cert.pem")) as server:
        assert server.exit_code() == 3
        assert "--ssl-certfile" in server.termination_log()
