"""What a process's return code says."""

from __future__ import annotations

import signal


def describe_exit(name: str, returncode: int) -> str:
    """A signal's name, or the exit code. `name`: of what ended, as a sentence begins."""
    if returncode >= 0:
        return f"{name} exited with code {returncode}"
    try:
        what = signal.Signals(-returncode).name
    except ValueError:
        what = f"signal {-returncode}"
    oom = " (often the kernel's, or the pod's, memory limit)" if what == "SIGKILL" else ""
    return f"{name} was killed by {what}{oom}"
