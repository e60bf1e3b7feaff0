"""How a server ended, and the file in which kubelet looks for it."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from thranite.errors import ConfigError, ExitCode
from thranite.parallel import exits
from thranite.supervisor.config import DEFAULT_TERMINATION_LOG

logger = logging.getLogger(__name__)

MAX_BYTES = 4096  # kubelet reads no more


@dataclass(frozen=True, slots=True)
class Outcome:
    """`stage`: what was going on (load, serve, drain, …). `cause`: None for an end that was asked for."""

    exit_code: ExitCode
    stage: str
    cause: str | None = None
    hint: str | None = None

    def text(self) -> str:
        lines = [f"stage: {self.stage}", f"cause: {self.cause}"]
        if self.hint is not None:
            lines.append(f"hint: {self.hint}")
        return "\n".join(lines) + "\n"


def describe_exit(name: str, returncode: int) -> str:
    """What a child's return code says: a signal's name, or the exit code."""
    return exits.describe_exit(f"the {name} process", returncode)


def check_termination_log(path: str) -> None:
    """Find out before loading whether a path given by the user can be written. Raises ConfigError."""
    if path == DEFAULT_TERMINATION_LOG:
        return
    try:
        with Path(path).open("ab"):
            return
    except OSError as error:
        raise ConfigError(f"--termination-log-path {path} cannot be written: {error.strerror}") from error


def write_termination_log(path: str, outcome: Outcome) -> None:
    """Write the outcome where kubelet looks. The default path exists only in a pod, and is never created."""
    data = outcome.text().encode()[:MAX_BYTES]
    flags = os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC
    if path != DEFAULT_TERMINATION_LOG:
        flags |= os.O_CREAT
    try:
        file = os.open(path, flags, 0o644)
        try:
            os.write(file, data)
        finally:
            os.close(file)
    except OSError as error:
        level = logging.DEBUG if path == DEFAULT_TERMINATION_LOG else logging.ERROR
        logger.log(level, "the termination log %s cannot be written: %s", path, error.strerror)
