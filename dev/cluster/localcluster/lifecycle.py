"""`up` and `down`, as the user's process sees them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time

from . import client, keeper, preflight
from .errors import ClusterError
from .paths import ClusterPaths, clusters_folder, self_command
from .pki import Pki
from .plan import Options
from .shell import wait_until
from .tools import installed_tools


def up(options: Options) -> ClusterPaths:
    preflight.check()
    installed_tools()
    keeper.sweep()
    paths = ClusterPaths.of(options.name)
    lock = keeper.take_lock_in(paths, seconds=0.5)
    if lock is None:
        raise ClusterError(f"a cluster named {options.name!r} is up already (`down --name {options.name}` ends it)")
    paths.make_folders()
    options.save(paths.options)
    started = time.monotonic()
    listeners = [_loopback_listener(), _loopback_listener()]
    progress = _start_keeper(paths, options.name, lock, listeners)
    try:
        _follow(progress, started)
    except BaseException:
        progress.close()  # tells the supervisor to end
        _wait_for_end(paths)
        raise
    _write_kubeconfigs(paths, listeners)
    for listener in listeners:
        listener.close()
    print(f"up in {time.monotonic() - started:.1f} s")
    return paths


def _loopback_listener() -> socket.socket:
    """A socket belongs to the network that it was opened in: one of the machine's, served from inside the cluster's."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(1024)
    return listener


def _start_keeper(paths: ClusterPaths, name: str, lock: int, listeners: list[socket.socket]) -> socket.socket:
    ours, theirs = socket.socketpair()
    descriptors = [theirs.fileno(), *(listener.fileno() for listener in listeners)]
    with (paths.logs / "keeper.log").open("ab") as log:
        subprocess.Popen(
            self_command("_keep", name, str(lock), *map(str, descriptors)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[lock, *descriptors],
            start_new_session=True,
            cwd="/",
        )
    os.close(lock)
    theirs.close()
    return ours


def _follow(progress: socket.socket, started: float) -> None:
    for line in progress.makefile():
        message = json.loads(line)
        if "error" in message:
            raise ClusterError(message["error"])
        if message.get("ready"):
            return
        print(f"{time.monotonic() - started:5.1f} s  {message['step']}", flush=True)
    raise ClusterError("the cluster ended while it came up")


def _write_kubeconfigs(paths: ClusterPaths, listeners: list[socket.socket]) -> None:
    pki = Pki(paths.pki)
    for path, listener in zip((paths.kubeconfig, paths.faults_kubeconfig), listeners, strict=True):
        path.write_text(pki.kubeconfig("admin", f"https://127.0.0.1:{listener.getsockname()[1]}"))
        path.chmod(0o600)


def _wait_for_end(paths: ClusterPaths) -> None:
    wait_until(lambda: not keeper.is_alive(paths), 60, "the end of the cluster", interval=0.05)


def down(name: str) -> None:
    paths = ClusterPaths.of(name)
    if keeper.is_alive(paths):
        _ask_to_end(name)
        _wait_for_end(paths)
    elif not paths.lock.exists() and not paths.root.exists():
        print(f"no cluster named {name!r}", file=sys.stderr)
    keeper.sweep()


def _ask_to_end(name: str) -> None:
    """Through the supervisor, or, where it does not answer yet, by its keeper's child."""
    paths = ClusterPaths.of(name)
    try:
        client.RunningCluster(name).ask("down")
    except ClusterError:
        wait_until(paths.init_pid.exists, 10, "the cluster's first process")
        _kill(int(paths.init_pid.read_text()))


def _kill(pid: int) -> None:
    try:
        os.kill(pid, 9)
    except ProcessLookupError:
        return


def names() -> list[str]:
    return sorted(lock.stem for lock in clusters_folder().glob("*.lock")) if clusters_folder().exists() else []
