"""A node's control groups, in every hierarchy that the machine mounts (cgroup v1, v2 or both)."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from .errors import ClusterError

PARENT = "thranite"
# What the kubelet expects on cgroup v2.
DELEGATED = {"cpu", "cpuset", "hugetlb", "io", "memory", "pids"}
# cgroup v1 starts a new cpuset empty; no process can enter it.
CPUSET_FILES = ("cpuset.cpus", "cpuset.mems")


@dataclass(frozen=True)
class Hierarchy:
    mountpoint: Path
    unified: bool
    controllers: frozenset[str]

    def group(self, *names: str) -> Path:
        return self.mountpoint.joinpath(PARENT, *names)


def hierarchies(mountinfo: str | None = None) -> list[Hierarchy]:
    found = {}
    text = mountinfo if mountinfo is not None else Path("/proc/self/mountinfo").read_text()
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind in ("cgroup", "cgroup2"):
            mountpoint = Path(before.split(" ")[4])
            found[mountpoint] = Hierarchy(mountpoint, kind == "cgroup2", frozenset(options.split(",")))
    return list(found.values())


def make_node_groups(cluster: str, node: str) -> list[Path]:
    """Makes the node's groups and gives back the one for its own components in each hierarchy."""
    return [_make_surely(hierarchy, cluster, node) for hierarchy in hierarchies()]


def _make_surely(hierarchy: Hierarchy, cluster: str, node: str) -> Path:
    """Again if another cluster, on its way out, has just removed the parent that both share."""
    for _ in range(10):
        try:
            return _make_in(hierarchy, cluster, node)
        except FileNotFoundError:
            time.sleep(0.02)
    return _make_in(hierarchy, cluster, node)


def _make_in(hierarchy: Hierarchy, cluster: str, node: str) -> Path:
    group = hierarchy.mountpoint
    for name in (PARENT, cluster, node, "components"):
        if hierarchy.unified:
            _delegate_controllers(group)
        child = group / name
        child.mkdir(exist_ok=True)
        for file in CPUSET_FILES:
            if not hierarchy.unified and (child / file).exists() and not (child / file).read_text().strip():
                (child / file).write_text((group / file).read_text())
        group = child
    return group


def _delegate_controllers(group: Path) -> None:
    offered = DELEGATED & set((group / "cgroup.controllers").read_text().split())
    try:
        for name in sorted(offered):
            (group / "cgroup.subtree_control").write_text(f"+{name}")
    except OSError as error:
        raise ClusterError(f"{group} does not hand its control group controllers on: {error}") from error


def node_processes(cluster: str, node: str) -> set[int]:
    """All processes of a node, its pods included. Which hierarchy is asked does not matter: they are in each."""
    pids: set[int] = set()
    for hierarchy in hierarchies():
        for folder, _, _ in os.walk(hierarchy.group(cluster, node)):
            pids |= _processes(Path(folder))
    return pids


def _processes(group: Path) -> set[int]:
    try:
        return {int(word) for word in (group / "cgroup.procs").read_text().split() if word != "0"}
    except OSError:  # the group went away, or is of another kind: a threaded one cannot be read
        return set()


def signal_node(cluster: str, node: str, number: signal.Signals) -> None:
    for pid in node_processes(cluster, node):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def kill_node(cluster: str, node: str) -> None:
    """Kills until nothing is left: a process may fork while its siblings are being killed."""
    deadline = time.monotonic() + 20
    while node_processes(cluster, node):
        if time.monotonic() > deadline:
            raise ClusterError(f"processes of {node} survive being killed: {node_processes(cluster, node)}")
        signal_node(cluster, node, signal.SIGKILL)
        time.sleep(0.05)


def remove(cluster: str, node: str = "") -> None:
    """Removes the groups of a cluster or of one node; their processes must be gone."""
    for hierarchy in hierarchies():
        for folder, _, _ in os.walk(hierarchy.group(cluster, node), topdown=False):
            _remove_group(Path(folder))
        if not node:
            with contextlib.suppress(OSError):  # another cluster's groups are in it, or it is gone
                hierarchy.group().rmdir()


def _remove_group(group: Path) -> None:
    deadline = time.monotonic() + 10
    while group.exists():
        try:
            group.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:  # busy for an instant after its last process died
            if time.monotonic() > deadline:
                raise ClusterError(f"the control group {group} cannot be removed: {error}") from error
            time.sleep(0.02)
