"""A node's namespaces: one process holds them, and all of the node's programs enter through it.

A holder rather than files under /run/netns: with its end, however it comes, the namespaces end too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .paths import ClusterPaths

KINDS = {"mount": "mnt", "net": "net", "uts": "uts"}
# Every node has its own /var and /run, so its programs keep their usual paths. What happens in there stays in there.
# The folders in "$@" lie in the machine's /var, and are seen in the node's as well.
HOLD = """set -e
var=$1 name=$2 program=$3
shift 3
for folder in "$@"; do
    mkdir -p "$var${folder#/var}"
    mount --rbind "$folder" "$var${folder#/var}"
done
mount --rbind "$var" /var
mount -t tmpfs -o mode=755 run /run
mount --make-rshared /
mkdir -p /run/lock /run/netns /run/thranite /var/lib/kubelet /var/log /var/tmp
hostname "$name"
touch /run/thranite/ready
exec "$program"
"""


def holder_command(var: Path, name: str, program: Path, shown: Sequence[Path] = ()) -> tuple[str, ...]:
    """`var` becomes the node's /var; `shown` are folders of the machine that the node needs to see."""
    isolate = ("unshare", *(f"--{kind}" for kind in KINDS), "--propagation", "private")
    kept = [str(path) for path in shown if path.is_relative_to("/var")]
    return (*isolate, "sh", "-c", HOLD, "hold", str(var), name, str(program), *kept)


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
