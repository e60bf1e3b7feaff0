"""A node's namespaces: one process holds them, and all of the node's programs enter through it.

A holder rather than files under /run/netns: with its end, however it comes, the namespaces end too.
"""

from __future__ import annotations

from pathlib import Path

from .paths import ClusterPaths

KINDS = {"mount": "mnt", "net": "net", "uts": "uts"}
# Every node has its own /var and /run, so its programs keep their usual paths. What happens in there stays in there.
HOLD = """set -e
mount --make-rshared /
mount --bind "$1" /var
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/lock /run/netns /run/thranite /var/lib/kubelet /var/log /var/tmp
hostname "$2"
touch /run/thranite/ready
exec "$3"
"""


def holder_command(folder: Path, name: str, program: Path) -> tuple[str, ...]:
    isolate = ("unshare", *(f"--{kind}" for kind in KINDS), "--propagation", "private")
    return (*isolate, "sh", "-c", HOLD, "hold", str(folder), name, str(program))


def holder_folder(paths: ClusterPaths, node: str, proc: str = "/proc") -> Path:
    return Path(proc, paths.holder_pid(node).read_text())


def is_ready(paths: ClusterPaths, node: str) -> bool:
    return (holder_folder(paths, node) / "root/run/thranite/ready").exists()


def network_of(paths: ClusterPaths, node: str) -> Path:
    return holder_folder(paths, node) / "ns/net"


def entering(paths: ClusterPaths, node: str, proc: str = "/proc") -> list[str]:
    """The words that run a command inside a node; `proc` is where the cluster's processes are seen."""
    inside = holder_folder(paths, node, proc) / "ns"
    return ["nsenter", *(f"--{kind}={inside / file}" for kind, file in KINDS.items()), "--"]
