"""Signals to the processes of a pod, found by their control groups: those carry the containers' ids."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from .client import RunningCluster
from .errors import ClusterError
from .shell import run
from .tools import installed_tools

SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "resume": signal.SIGCONT}


def signal_pod(cluster: RunningCluster, verb: str, target: str) -> None:
    parts = target.split("/")
    if verb not in SIGNALS or len(parts) not in (3, 4):
        raise ClusterError(f"a pod takes {', '.join(SIGNALS)} and is named pod/NAMESPACE/NAME[/CONTAINER]")
    for container in _container_ids(cluster, *parts[1:]):
        for pid in processes_of(container):
            _signal(pid, SIGNALS[verb])


def _container_ids(cluster: RunningCluster, namespace: str, name: str, container: str = "") -> list[str]:
    access = (f"--kubeconfig={cluster.paths.kubeconfig}", f"--cache-dir={cluster.paths.kubectl_cache}")
    kubectl = (installed_tools() / "kubectl", *access, f"--namespace={namespace}")
    status = json.loads(run(*kubectl, "get", "pod", name, "-o", "json"))["status"]
    entries = status.get("containerStatuses", []) + status.get("initContainerStatuses", [])
    chosen = [entry for entry in entries if container in ("", entry["name"]) and "running" in entry["state"]]
    if not chosen:
        raise ClusterError(f"pod {namespace}/{name} has no running container {container}".rstrip())
    return [entry["containerID"].removeprefix("containerd://") for entry in chosen]


def processes_of(container: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            groups = (entry / "cgroup").read_text()
        except (FileNotFoundError, ProcessLookupError):  # it ended
            continue
        if container in groups:
            found.append(int(entry.name))
    return found


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
