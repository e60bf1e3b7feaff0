"""The plan of a cluster: names, addresses, timers. Each cluster has its own network, so all use the same addresses."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from .errors import ClusterError

CONTROL_IP = "172.30.0.1"
API_PORT = 6443
FAULTS_PORT = 7443
ETCD_PORT = 2379
SERVICE_CIDR = "10.96.0.0/16"
API_SERVICE_IP = "10.96.0.1"
DNS_SERVICE_IP = "10.96.0.10"
POD_CIDR = "10.244.0.0/16"
KWOK_CIDR = "10.128.0.0/12"
DOMAIN = "cluster.local"
MAX_NODES = 9


@dataclass(frozen=True)
class NodePlan:
    index: int

    @property
    def name(self) -> str:
        return f"node{self.index}"

    @property
    def ip(self) -> str:
        return f"172.30.0.{10 + self.index}"

    @property
    def mac(self) -> str:
        """Fixed, so that a node that comes back is found at once."""
        return f"02:00:ac:1e:00:{10 + self.index:02x}"

    @property
    def pod_subnet(self) -> str:
        return f"10.244.{self.index}.0/24"


@dataclass(frozen=True)
class Options:
    """What `up` was asked for; kept in the cluster's folder for the commands that follow."""

    name: str = "default"
    nodes: int = 1
    gpus: int = 2
    node_timeout: int = 40  # seconds without a heartbeat until a node is NotReady
    eviction_timeout: int = 300  # seconds that a pod stays on a node that is NotReady
    qps: int = 50  # of the controllers' clients

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", self.name):
            raise ClusterError(
                f"a cluster's name has lower case letters, digits and dashes, up to 32: not {self.name!r}"
            )
        if not 1 <= self.nodes <= MAX_NODES:
            raise ClusterError(f"--nodes must be 1 to {MAX_NODES}, not {self.nodes}")
        if self.gpus < 0:
            raise ClusterError(f"--gpus must not be negative: {self.gpus}")
        if self.node_timeout < 4 or self.eviction_timeout < 0:
            raise ClusterError("--node-timeout must be 4 s or more and --eviction-timeout must not be negative")

    def node_plans(self) -> list[NodePlan]:
        return [NodePlan(index) for index in range(self.nodes)]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1))

    @staticmethod
    def load(path: Path) -> Options:
        return Options(**json.loads(path.read_text()))
