"""Takes the network away from a pod or a component: packets are dropped, so the other side waits and is not refused."""

from __future__ import annotations

from collections.abc import Sequence

from .api import Api
from .errors import ClusterError
from .plan import API_PORT, ETCD_PORT, FAULTS_PORT
from .shell import run

KUBELET_PORT = 10250
PORTS = {"etcd": ETCD_PORT, "kube-apiserver": API_PORT, "coredns": 53, "faults": FAULTS_PORT, "kubelet": KUBELET_PORT}
Rule = tuple[str, ...]


def component_rules(name: str) -> list[Rule]:
    """What comes in for the component, and for the kubelet also its way to the API server."""
    if name not in PORTS:
        raise ClusterError(f"{name} serves nobody; these can be cut off: {', '.join(PORTS)}, nodes and pods")
    rules: list[Rule] = [("INPUT", "-p", kind, "--dport", str(PORTS[name])) for kind in ("tcp", "udp")]
    if name == "kubelet":
        rules.append(("OUTPUT", "-p", "tcp", "--dport", str(API_PORT)))
    return rules


def pod_rules(address: str) -> list[Rule]:
    """Between the pod and its node, and through the node."""
    return [
        ("OUTPUT", "-d", address),
        ("INPUT", "-s", address),
        ("FORWARD", "-d", address),
        ("FORWARD", "-s", address),
    ]


def find_pod(api: Api, namespace: str, name: str) -> tuple[str, str]:
    """The pod's node and address."""
    pod = api.call("GET", f"/api/v1/namespaces/{namespace}/pods/{name}")
    if "podIP" not in pod["status"]:
        raise ClusterError(f"pod {namespace}/{name} has no address yet")
    return pod["spec"]["nodeName"], pod["status"]["podIP"]


def drop(enter: Sequence[str], rules: list[Rule], cut: bool) -> None:
    """Sets or removes the rules in the network that `enter` leads to; done twice, it has no further effect."""
    for chain, *match in rules:
        rule = (chain, *match, "-j", "DROP")
        run(*enter, "iptables", "-I" if cut else "-D", *rule)
