"""Let a running server finish its requests, and wait until it has: for a pod's preStop hook.

The exit code is 0 once nothing is open, or the server has ended, or it was not up yet; 1 if no server answers, it
refuses, or the drain was undone.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thranite.cli.flags import add_flags, build
from thranite.config import option
from thranite.errors import ConfigError, ExitCode, ThraniteError

POLL_SECONDS = 0.2
ANSWER_SECONDS = 5.0  # the admin port answers from memory
SLACK_SECONDS = 30.0  # beyond the deadline, for cut-off streams to end
WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
NOT_UP = 409


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainConfig:
    admin_host: str = option("127.0.0.1", "address of the server's admin port")
    admin_port: int = option(8001, "the server's admin port")
    admin_key_file: str | None = option(None, "file with the admin port's key, if it asks for one")
    deadline_seconds: float | None = option(
        None, "running requests are cut off so long after the drain began (default: the server's --drain-timeout)"
    )

    def __post_init__(self) -> None:
        if self.deadline_seconds is not None and self.deadline_seconds < 0:
            raise ConfigError(f"--deadline-seconds must not be negative, got {self.deadline_seconds}")


class AdminPort:
    """One server's admin port."""

    def __init__(self, config: DrainConfig) -> None:
        self._host, self._port = WILDCARDS.get(config.admin_host, config.admin_host), config.admin_port
        self._headers = {"Content-Type": "application/json"}
        if config.admin_key_file is not None:
            try:
                key = Path(config.admin_key_file).read_text(encoding="utf-8").strip()
            except OSError as error:
                raise ConfigError(f"--admin-key-file {config.admin_key_file}: {error.strerror}") from error
            self._headers["Authorization"] = f"Bearer {key}"

    def __str__(self) -> str:
        return f"{self._host}:{self._port}"

    def ask(self, method: str, body: dict[str, float] | None = None) -> tuple[int, dict[str, Any]]:
        """Status and JSON of `/drain`. Raises OSError or HTTPException if no server answers."""
        connection = http.client.HTTPConnection(self._host, self._port, timeout=ANSWER_SECONDS)
        try:
            connection.request(method, "/drain", json.dumps(body) if body else None, self._headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_flags(parser, DrainConfig, "drain")


def run(args: argparse.Namespace) -> int:
    config = build(DrainConfig, args, os.environ)
    admin = AdminPort(config)
    wish = {} if config.deadline_seconds is None else {"deadline_seconds": config.deadline_seconds}
    try:
        code, status = admin.ask("POST", wish)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ThraniteError(f"no server answers at {admin}: {error}") from error
    if code == NOT_UP:
        print(f"nothing to drain: {_reason(status)}", file=sys.stderr)
        return ExitCode.OK
    if code != http.client.OK:
        raise ThraniteError(f"{admin} refused: {_reason(status)}")
    return _wait(admin, status)


def _wait(admin: AdminPort, status: dict[str, Any]) -> int:
    give_up = time.monotonic() + status["deadline_seconds"] + SLACK_SECONDS
    while not status["drained"]:
        if not status["draining"]:
            raise ThraniteError("the drain was undone before it was complete")
        if time.monotonic() > give_up:
            raise ThraniteError(f"{status['open_requests']} requests are still open long after the deadline")
        time.sleep(POLL_SECONDS)
        try:
            code, status = admin.ask("GET")
        except TimeoutError:
            continue  # it is there, and has other work
        except (OSError, http.client.HTTPException) as error:
            print(f"the server has ended ({type(error).__name__})", file=sys.stderr)
            return ExitCode.OK
        if code != http.client.OK:
            raise ThraniteError(f"{admin} refused: {_reason(status)}")
    return ExitCode.OK


def _reason(answer: dict[str, Any]) -> str:
    return str(answer.get("error", {}).get("message", answer))
