"""The cluster's network: a bridge in the control plane's namespace, a veth pair to each node's, no way out of it."""

from __future__ import annotations

from pathlib import Path

from .plan import CONTROL_IP, KWOK_CIDR, SERVICE_CIDR, NodePlan
from .shell import Argument, run, succeeds, wait_until

BRIDGE = "nodes"
POD_BRIDGE = "cni0"
# Without an address of its own a bridge takes one of its ports', and changes it when that port goes: neighbours would
# send into the void until they ask again.
BRIDGE_MAC = "02:00:ac:1e:00:01"
POD_BRIDGE_MAC = "02:00:0a:f4:00:01"
SWITCHES = {"net/ipv4/ip_forward": "1", "net/bridge/bridge-nf-call-iptables": "1"}


def veth(node: NodePlan) -> str:
    return f"veth-{node.name}"


def in_network(namespace: Path, *command: Argument) -> str:
    return run("nsenter", f"--net={namespace}", "--", *command)


def set_up_control() -> None:
    """Runs inside the control plane's own, still empty network namespace."""
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", "name", BRIDGE, "address", BRIDGE_MAC, "type", "bridge")
    run("ip", "addr", "add", f"{CONTROL_IP}/24", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")
    # The addresses of kwok's pods all belong to this namespace: one program answers for them.
    run("ip", "route", "add", "local", KWOK_CIDR, "dev", "lo")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def connect(node: NodePlan, namespace: Path, others: list[NodePlan]) -> None:
    peer = ("name", "eth0", "address", node.mac, "netns", namespace)
    run("ip", "link", "add", "name", veth(node), "type", "veth", "peer", *peer)
    run("ip", "link", "set", veth(node), "master", BRIDGE, "up")
    run("ip", "route", "replace", node.pod_subnet, "via", node.ip)
    in_network(namespace, "ip", "link", "set", "lo", "up")
    in_network(namespace, "ip", "addr", "add", f"{node.ip}/24", "dev", "eth0")
    in_network(namespace, "ip", "link", "set", "eth0", "up")
    in_network(namespace, "ip", "link", "add", "name", POD_BRIDGE, "address", POD_BRIDGE_MAC, "type", "bridge")
    for other in others:
        in_network(namespace, "ip", "route", "add", other.pod_subnet, "via", other.ip)
    in_network(namespace, "ip", "route", "add", KWOK_CIDR, "via", CONTROL_IP)
    # Service addresses need some route before kube-proxy's rules replace them by a pod's.
    in_network(namespace, "ip", "route", "add", SERVICE_CIDR, "via", CONTROL_IP)
    for switch, value in SWITCHES.items():
        in_network(namespace, "sh", "-c", f"echo {value} > /proc/sys/{switch}")


def disconnect(node: NodePlan) -> None:
    """The kernel removes the pair with the node's namespace, but takes its time."""

    def gone() -> bool:
        succeeds(["ip", "link", "del", veth(node)])
        return not succeeds(["ip", "link", "show", veth(node)])

    wait_until(gone, 10, f"the end of {veth(node)}")


def set_link(node: NodePlan, up: bool) -> None:
    run("ip", "link", "set", veth(node), "up" if up else "down")
