"""Waiting for what other processes do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

TIMEOUT = 30.0


def wait_for(what: Callable[[], Any], message: str, timeout: float = TIMEOUT) -> Any:
    """Poll until `what` returns something true."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if value := what():
            return value
        time.sleep(0.02)
    raise AssertionError(f"timed out: {message}")
