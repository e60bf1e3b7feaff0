"""`thranite drain` against an admin port of canned answers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from tests.support.http_stub import http_stub
from thranite.cli import drain as drain_command
from thranite.cli.main import main
from thranite.errors import ExitCode

Answer = tuple[int, dict[str, Any]]
Serve = Callable[[list[Answer]], tuple[int, list[tuple[str, str, str | None]]]]


def status(drained: bool, *, draining: bool = True, open_requests: int = 0) -> Answer:
    return 200, {
        "draining": draining,
        "drained": drained,
        "open_requests": open_requests,
        "deadline_seconds": 9.0 if draining else None,
    }


SLOW: Answer = status(False, open_requests=1)


def refusal(code: int, message: str) -> Answer:
    return code, {"error": {"message": message, "param": None}}


@pytest.fixture
def admin() -> Iterator[Serve]:
    """Start a server that gives these answers in turn; its port, and what it was asked: method, body, authorization."""
    stack = ExitStack()

    def serve(answers: list[Answer]) -> tuple[int, list[tuple[str, str, str | None]]]:
        asked: list[tuple[str, str, str | None]] = []
        left = iter(answers)

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
                asked.append((f"{self.command} {self.path}", body, self.headers.get("Authorization")))
                given = next(left, None)
                if given is None:  # the process ended: the connection closes without an answer
                    return
                if given is SLOW:
                    time.sleep(0.5)
                data = json.dumps(given[1]).encode()
                self.send_response(given[0])
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self) -> None:
                self.answer()

            def do_POST(self) -> None:
                self.answer()

            def log_message(self, format: str, *args: object) -> None:
                """Requests are in `asked`."""

        return stack.enter_context(http_stub(Handler)), asked

    with stack:
        yield serve


def drain(port: int, *options: str) -> int:
    return main(["drain", "--admin-port", str(port), *options])


def test_waits_until_nothing_is_open(admin: Serve) -> None:
    port, asked = admin([status(False, open_requests=2), status(False, open_requests=1), status(True)])
    assert drain(port, "--deadline-seconds", "9") == ExitCode.OK
    assert [entry[0] for entry in asked] == ["POST /drain", "GET /drain", "GET /drain"]
    assert json.loads(asked[0][1]) == {"deadline_seconds": 9.0}


def test_the_servers_own_deadline_is_left_alone(admin: Serve) -> None:
    port, asked = admin([status(True)])
    assert drain(port) == ExitCode.OK
    assert asked == [("POST /drain", "", None)]


def test_the_admin_key_is_sent(admin: Serve, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("open sesame\n")
    port, asked = admin([status(True)])
    assert drain(port, "--admin-key-file", str(tmp_path / "key")) == ExitCode.OK
    assert asked[0][2] == "Bearer open sesame"
    assert drain(port, "--admin-key-file", str(tmp_path / "absent")) == ExitCode.CONFIG


def test_a_server_that_ends_meanwhile_is_drained(admin: Serve) -> None:
    port, _ = admin([status(False, open_requests=1)])
    assert drain(port) == ExitCode.OK


def test_a_server_that_is_busy_is_asked_again(admin: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain_command, "ANSWER_SECONDS", 0.2)
    port, asked = admin([status(False, open_requests=1), SLOW, status(False, open_requests=1), status(True)])
    assert drain(port) == ExitCode.OK
    assert len(asked) == 4


def test_a_server_that_is_not_up_has_nothing_to_drain(admin: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    port, _ = admin([refusal(409, "the server is not up")])
    assert drain(port) == ExitCode.OK
    assert "the server is not up" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([refusal(401, "the admin key is missing")], "the admin key is missing"),
        ([status(False, open_requests=1), status(False, draining=False)], "undone"),
        ([], "no server answers"),
    ],
)
def test_failures(admin: Serve, answers: list[Answer], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    port, _ = admin(answers)
    assert drain(port) == ExitCode.FAILURE
    assert said in capsys.readouterr().err


def test_nobody_listens(capsys: pytest.CaptureFixture[str]) -> None:
    assert drain(1) == ExitCode.FAILURE
    assert "127.0.0.1:1" in capsys.readouterr().err
