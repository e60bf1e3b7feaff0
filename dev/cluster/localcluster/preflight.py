"""What the machine must have: rights, kernel features, system packages. Says what is missing before anything starts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from . import cgroups
from .errors import ClusterError
from .images import laid_over, seen_folders
from .paths import CHECKOUT, ENTRY
from .shell import succeeds

HIDDEN = Path("/run")  # every node has its own
CONTROLLERS = {"cpu", "cpuset", "memory", "pids"}


@dataclass(frozen=True)
class Package:
    """A Debian package and a file or program of it that shows that it is there."""

    name: str
    shows: str

    def present(self) -> bool:
        return Path(self.shows).exists() if self.shows.startswith("/") else shutil.which(self.shows) is not None


PACKAGES = (
    Package("runc", "runc"),
    Package("containernetworking-plugins", "/usr/lib/cni/bridge"),
    Package("iptables", "iptables"),
    Package("conntrack", "conntrack"),
    Package("iproute2", "ip"),
    Package("openssl", "openssl"),
    Package("util-linux", "nsenter"),
    Package("mount", "mount"),
    Package("buildah", "buildah"),
)
ONLY_FOR_BUILDING_IMAGES = {"buildah"}


def missing_packages() -> list[str]:
    return [package.name for package in PACKAGES if not package.present()]


def install_packages() -> None:
    """Installs what is missing with apt where this user may, and otherwise names it."""
    missing = missing_packages()
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise ClusterError(f"please install these packages (Debian's names): {' '.join(missing)}")
    print(f"installing {' '.join(missing)}", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    quiet = ("apt-get", "-qq", "-o", "Dpkg::Use-Pty=0")
    for command in ((*quiet, "update"), (*quiet, "install", "-y", "--no-install-recommends", *missing)):
        done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False)
        if done.returncode != 0:
            raise ClusterError(f"`{' '.join(command)}` ended with {done.returncode}")
    if still := missing_packages():
        raise ClusterError(f"installed, but not to be found: {' '.join(still)}")


def refusals() -> list[str]:
    """Why no cluster can run here; empty if one can."""
    if sys.platform != "linux":
        return ["it needs Linux"]
    if os.geteuid() != 0:
        return ["it needs root: namespaces, mounts and control groups (try sudo)"]
    packages = [name for name in missing_packages() if name not in ONLY_FOR_BUILDING_IMAGES]
    if packages:
        return [f"packages are missing: {' '.join(packages)} (`make cluster-tools` installs them)"]
    return [*_missing_kernel_features(), *_hidden_folders(), *_closed_folders()]


def _missing_kernel_features() -> list[str]:
    missing = []
    if "overlay" not in Path("/proc/filesystems").read_text() and not succeeds(["modprobe", "overlay"]):
        missing.append("the kernel has no overlay file system")
    isolated = ("unshare", "--pid", "--mount", "--net", "--ipc", "--uts", "--fork", "--mount-proc")
    if not succeeds([*isolated, "true"]):
        return [*missing, "new namespaces cannot be made here (a container without privileges?)"]
    if not succeeds(
        [*isolated, "sh", "-c", "ip link add name b type bridge && ip link add name v type veth peer name w"]
    ):
        missing.append("the kernel has no bridge or veth devices")
    succeeds(["modprobe", "br_netfilter"])  # where it is a module; where it is built in, the next test tells
    if not succeeds([*isolated, "test", "-e", "/proc/sys/net/bridge/bridge-nf-call-iptables"]):
        missing.append("the kernel does not filter bridged traffic (br_netfilter)")
    if not succeeds(
        [*isolated, "sh", "-c", "mount -t tmpfs run /run && iptables -t nat -A OUTPUT -m comment --comment x"]
    ):
        missing.append("iptables cannot change the nat table in a new network namespace")
    if lacking := sorted(CONTROLLERS - _controllers()):
        missing.append(f"control group controllers are missing: {', '.join(lacking)}")
    return missing


def _controllers() -> set[str]:
    found: set[str] = set()
    for hierarchy in cgroups.hierarchies():
        if hierarchy.unified:
            found |= set((hierarchy.mountpoint / "cgroup.controllers").read_text().split())
        else:
            found |= hierarchy.controllers
    return found


def _hidden_folders() -> list[str]:
    return [
        f"{path} lies in {HIDDEN}, which every node has for itself: choose another place (THRANITE_CACHE for the cache)"
        for path in seen_folders()
        if path.resolve().is_relative_to(HIDDEN)
    ]


def _closed_folders() -> list[str]:
    """Containers run as users of their own, who own nothing of this machine's."""
    closed = [path for path in map(Path, laid_over()) if path.stat().st_mode & 0o005 != 0o005]
    if not ENTRY.stat().st_mode & 0o004:
        closed.append(CHECKOUT)
    return [f"pods may not read {path}, as other users may not: `chmod -R o+rX {path}`" for path in closed]


def check() -> None:
    if reasons := refusals():
        raise ClusterError("\n  ".join(["a local cluster cannot run on this machine:", *reasons]))
