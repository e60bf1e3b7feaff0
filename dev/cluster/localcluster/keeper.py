"""The keeper: the one process of a cluster outside its namespaces. It starts the supervisor inside new ones, waits for
its end, and removes what the kernel does not: control groups and files.

Every process of a cluster lives in one process-id namespace. When the supervisor ends, for whatever reason, the kernel
kills the rest, and mounts and network namespaces go with the last process that used them. The keeper holds a lock as
long as it lives; whoever finds a cluster's folder with its lock free may remove it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from . import cgroups
from .errors import ClusterError
from .paths import ClusterPaths, clusters_folder, self_command

# If the keeper is killed, `unshare` is killed with it, and its child, the first process inside, with that.
ISOLATE = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--pid", "--mount", "--net", "--ipc", "--fork", "--kill-child=KILL", "--mount-proc"),
    *("--propagation", "private"),
)


def take_lock(paths: ClusterPaths) -> int | None:
    """The lock's descriptor, or nothing if another process has it."""
    paths.lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        if _is_file_of(paths.lock, descriptor):
            return descriptor
        os.close(descriptor)


def _is_file_of(path: Path, descriptor: int) -> bool:
    """False if the file was removed, and perhaps made anew, between opening and locking it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def take_lock_in(paths: ClusterPaths, seconds: float) -> int | None:
    """Tries again: a command that only looks holds the lock for an instant."""
    deadline = time.monotonic() + seconds
    while (descriptor := take_lock(paths)) is None and time.monotonic() < deadline:
        time.sleep(0.02)
    return descriptor


def is_alive(paths: ClusterPaths) -> bool:
    if not paths.lock.exists():
        return False
    descriptor = take_lock(paths)
    if descriptor is None:
        return True
    os.close(descriptor)
    return False


def remove_remains(name: str) -> None:
    """Removes the groups and files of a cluster whose processes are gone; the caller holds the lock."""
    paths = ClusterPaths.of(name)
    cgroups.remove(name)
    if paths.root.exists():
        shutil.rmtree(paths.root)
    paths.lock.unlink(missing_ok=True)


def sweep() -> list[str]:
    """Removes what clusters left whose keeper was killed."""
    swept = []
    for lock in sorted(clusters_folder().glob("*.lock")) if clusters_folder().exists() else []:
        paths = ClusterPaths(lock.with_suffix(""))
        descriptor = take_lock(paths)
        if descriptor is None:
            continue
        remove_remains(paths.root.name)
        os.close(descriptor)
        swept.append(paths.root.name)
    return swept


def keep(name: str, lock: int, descriptors: list[int]) -> int:
    """Runs as a daemon. `descriptors` are the progress socket and the listening sockets, for the supervisor."""
    paths = ClusterPaths.of(name)
    os.set_inheritable(lock, False)
    command = [*ISOLATE, *self_command("_init", name, *map(str, descriptors))]
    inside = subprocess.Popen(command, pass_fds=descriptors, stdin=subprocess.DEVNULL)
    for descriptor in descriptors:
        os.close(descriptor)
    signal.signal(signal.SIGTERM, lambda *_: inside.kill())
    _write_init_pid(paths.init_pid, inside.pid)
    inside.wait()
    remove_remains(name)
    return 0


def _write_init_pid(path: Path, parent: int) -> None:
    """The machine's number of the first process inside: the door for `exec` and `load-image`."""
    children = Path(f"/proc/{parent}/task/{parent}/children")
    deadline = time.monotonic() + 10
    while True:
        found = children.read_text().split() if children.exists() else []
        if found:
            path.write_text(found[0])
            return
        if time.monotonic() > deadline:
            raise ClusterError("no process started inside the new namespaces")
        time.sleep(0.01)


def init(arguments: list[str]) -> int:
    """The first process inside: reaps what others leave, and ends with the supervisor."""
    supervisor = os.fork()
    if supervisor == 0:
        from .supervisor import supervise

        os._exit(supervise(arguments))
    while True:
        pid, status = os.wait()
        if pid == supervisor:
            sys.stdout.flush()
            return os.waitstatus_to_exitcode(status) & 0xFF
