"""`kwok`: fake nodes for thousands of pods that take no processes; one program answers for all of them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from .api import Api, Object
from .client import RunningCluster, http_call
from .errors import ClusterError
from .pki import Pki
from .plan import KWOK_CIDR

LABEL = "thranite.dev/kwok"
TAINT = {"key": LABEL, "value": "true", "effect": "NoSchedule"}


def add_to(verbs: Any, add_verb: Callable[..., argparse.ArgumentParser]) -> None:
    verb = add_verb(verbs, "kwok", run, "add fake nodes, and set what their pods answer to scrapes")
    verb.add_argument("action", choices=["nodes", "metrics", "state"])
    verb.add_argument("--count", type=int, default=10, help="nodes: how many there shall be (default %(default)s)")
    verb.add_argument("--pods", type=int, default=110, help="nodes: pods that each holds (default %(default)s)")
    verb.add_argument("--gpus", type=int, default=8, help="nodes: GPUs that each offers (default %(default)s)")
    verb.add_argument("--ip", default="*", help="metrics: of the pod with this IP (default: of all)")


def run(chosen: argparse.Namespace) -> int:
    cluster = RunningCluster(chosen.name)
    if chosen.action == "nodes":
        cluster.ask("kwok")
        _make_nodes(cluster, chosen)
    elif chosen.action == "metrics":
        http_call(cluster.paths.pods_socket, "PUT", f"/metrics/{chosen.ip}", sys.stdin.read())
    else:
        print(http_call(cluster.paths.pods_socket, "GET", "/state").strip())
    return 0


def fake_node(index: int, pods: int, gpus: int) -> Object:
    name = f"kwok{index}"
    labels = {LABEL: "true", "kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}
    room = {"cpu": "256", "memory": "2Ti", "pods": str(pods), "nvidia.com/gpu": str(gpus)}
    meta = {"name": name, "labels": labels}
    status = {"allocatable": room, "capacity": room}
    return {"apiVersion": "v1", "kind": "Node", "metadata": meta, "spec": {"taints": [TAINT]}, "status": status}


def _make_nodes(cluster: RunningCluster, chosen: argparse.Namespace) -> None:
    if chosen.count < 0:
        raise ClusterError("--count must not be negative")
    api = _outside_api(cluster)
    listed = api.call("GET", f"/api/v1/nodes?labelSelector={LABEL}")["items"]
    present = {node["metadata"]["name"] for node in listed}
    wanted = [fake_node(index, chosen.pods, chosen.gpus) for index in range(chosen.count)]
    for node in wanted:
        if node["metadata"]["name"] not in present:
            api.call("POST", "/api/v1/nodes", node)
    for name in sorted(present - {node["metadata"]["name"] for node in wanted}):
        api.call("DELETE", f"/api/v1/nodes/{name}")
    print(f"{chosen.count} fake nodes; their pods have addresses of {KWOK_CIDR} and tolerate the taint {LABEL}")


def _outside_api(cluster: RunningCluster) -> Api:
    server = json.loads(cluster.paths.kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
    host, port = server.removeprefix("https://").split(":")
    return Api(Pki(cluster.paths.pki), "admin", host, int(port))
