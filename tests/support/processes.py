"""The processes that one has started, told from /proc."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def children_of(pid: int, command: str) -> list[int]:
    """Those with `command` in their command line, in the order of their start.

    Pids alone do not give that order: they begin anew once they have reached `kernel.pid_max`.
    """
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            after_name = (process / "stat").read_text().rpartition(")")[2].split()
            if int(after_name[1]) == pid and command.encode() in (process / "cmdline").read_bytes():
                found.append((int(after_name[19]), int(process.name)))  # fields 4 and 22 of proc_pid_stat(5)
    return [child for _, child in sorted(found)]
