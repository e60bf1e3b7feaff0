"""`python -m dev.side_by_side COMMAND ... -- COMMAND ...`: two commands at once, told one after the other.

The first one's output is held back until the second, which has the terminal, has ended. Fails if either does. An
interrupt or SIGTERM interrupts both, and both are waited for: they clean up.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import IO, NoReturn

INTERRUPTED = 128 + signal.SIGINT


def run(beside: Sequence[str], command: Sequence[str]) -> int:
    """The exit code of the one that failed, `command` before `beside`; 0 if none did."""
    began = time.monotonic()
    with tempfile.TemporaryFile() as held:
        other = subprocess.Popen(
            beside, stdin=subprocess.DEVNULL, stdout=held, stderr=subprocess.STDOUT, start_new_session=True
        )
        codes = [INTERRUPTED, INTERRUPTED]
        try:
            codes[0] = _in_front(command)
            if other.poll() is None:
                _tell(f"still running: {shlex.join(beside)}")
            codes[1] = other.wait()
        except KeyboardInterrupt:
            with suppress(ProcessLookupError):
                os.killpg(other.pid, signal.SIGINT)
            other.wait()
        _tell(f"what {shlex.join(beside)} said beside it:")
        _copy(held)
    _tell(f"{codes[0]} and {codes[1]} after {time.monotonic() - began:.0f} s")
    return codes[0] or codes[1]


def _in_front(command: Sequence[str]) -> int:
    process = subprocess.Popen(command)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)  # a terminal has sent it already, `kill` has not
        process.wait()
        raise


def _copy(held: IO[bytes]) -> None:
    held.seek(0)
    shutil.copyfileobj(held, sys.stdout.buffer)
    sys.stdout.flush()


def _tell(text: str) -> None:
    print(f"side by side: {text}", flush=True)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def main(words: list[str]) -> int:
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in a shell's background both would be born to ignore it
    split = words.index("--")
    return run(words[:split], words[split + 1 :])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
