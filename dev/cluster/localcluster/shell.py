"""Running programs and waiting for conditions."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .errors import ClusterError

Argument = str | Path

PATIENCE = "THRANITE_CLUSTER_PATIENCE"


def patience() -> float:
    """How many times longer than usual this machine may take: an emulated one needs about 20."""
    text = os.environ.get(PATIENCE, "1")
    try:
        factor = float(text)
    except ValueError:
        factor = 0
    if not 1 <= factor <= 1000:
        raise ClusterError(f"{PATIENCE} must be a number from 1 to 1000, not {text!r}")
    return factor


def run(*command: Argument, input_text: str | None = None, timeout: float = 60) -> str:
    """Runs a program, gives back what it printed, and raises with its error output."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words, input=input_text, capture_output=True, text=True, timeout=timeout * patience(), check=False
    )
    if done.returncode != 0:
        raise ClusterError(f"`{' '.join(words)}` ended with {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def succeeds(command: Sequence[Argument]) -> bool:
    if shutil.which(str(command[0])) is None:
        return False
    return subprocess.run([str(word) for word in command], capture_output=True, check=False).returncode == 0


def wait_until(condition: Callable[[], bool], timeout: float, what: str, interval: float = 0.1) -> None:
    timeout *= patience()
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise ClusterError(f"{what} did not come within {timeout:.0f} s")
        time.sleep(interval)
