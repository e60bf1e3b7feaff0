"""Where things lie: the cache (tools, clusters) outside the checkout, and the folders of one cluster in it."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[1]
CHECKOUT = SOURCES.parents[1]
ENTRY = SOURCES / "__main__.py"


def cache_folder() -> Path:
    chosen = os.environ.get("THRANITE_CACHE")
    return (Path(chosen) if chosen else Path.home() / ".cache" / "thranite").resolve()


def virtual_environment() -> Path | None:
    """The environment whose packages the development image shows."""
    active = os.environ.get("VIRTUAL_ENV")
    candidates = [Path(active)] if active else []
    if sys.prefix != sys.base_prefix:
        candidates.append(Path(sys.prefix))
    candidates.append(CHECKOUT / ".venv")
    return next((path.resolve() for path in candidates if (path / "bin" / "python").exists()), None)


def self_command(*arguments: str) -> list[str]:
    """This program again, by the interpreter that runs it."""
    return [sys.executable, str(SOURCES), *arguments]


@dataclass(frozen=True)
class ClusterPaths:
    root: Path

    @staticmethod
    def of(name: str) -> ClusterPaths:
        return ClusterPaths(clusters_folder() / name)

    @property
    def lock(self) -> Path:
        """Beside the cluster's folder, because whoever removes the folder must still hold it."""
        return self.root.with_suffix(".lock")

    @property
    def options(self) -> Path:
        return self.root / "options.json"

    @property
    def kubeconfig(self) -> Path:
        return self.root / "kubeconfig"

    @property
    def faults_kubeconfig(self) -> Path:
        return self.root / "kubeconfig-faults"

    @property
    def kubectl_cache(self) -> Path:
        """Here and not under ~/.kube, where it would outlive the cluster."""
        return self.root / "kubectl-cache"

    @property
    def control_socket(self) -> Path:
        return self.root / "control.sock"

    @property
    def faults_socket(self) -> Path:
        return self.root / "faults.sock"

    @property
    def pods_socket(self) -> Path:
        """Of the program that answers for kwok's pods."""
        return self.root / "pods.sock"

    @property
    def init_pid(self) -> Path:
        return self.root / "init.pid"

    @property
    def logs(self) -> Path:
        return self.root / "log"

    @property
    def audit_log(self) -> Path:
        return self.logs / "audit.json"

    @property
    def pki(self) -> Path:
        return self.root / "pki"

    @property
    def etc(self) -> Path:
        return self.root / "etc"

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def volumes(self) -> Path:
        return self.root / "volumes"

    def node(self, name: str) -> Path:
        return self.root / "nodes" / name

    def holder_pid(self, node: str) -> Path:
        """The process that holds a node's namespaces, as numbered inside the cluster."""
        return self.node(node) / "holder.pid"

    def unhealthy_gpus(self, node: str) -> Path:
        return self.node(node) / "unhealthy-gpus"

    def make_folders(self) -> None:
        for folder in (self.logs, self.pki, self.etc, self.images, self.volumes):
            folder.mkdir(parents=True, exist_ok=True)
        self.pki.chmod(0o700)


def clusters_folder() -> Path:
    return cache_folder() / "clusters"


def tools_folder() -> Path:
    return cache_folder() / "tools"
