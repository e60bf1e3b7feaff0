"""What the cluster itself keeps in its API: rights of its parts, the DNS Service, the default StorageClass."""

from __future__ import annotations

from typing import Any

from .plan import CONTROL_IP, DNS_SERVICE_IP

Object = dict[str, Any]
RBAC = "rbac.authorization.k8s.io"
PROVISIONER = "thranite.dev/folder"
DNS_PORTS = [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]
LOOK = ["get", "list", "watch"]


def _rule(group: str, resources: list[str], verbs: list[str]) -> Object:
    return {"apiGroups": [group], "resources": resources, "verbs": verbs}


DNS_RULES = [
    _rule("", ["endpoints", "services", "pods", "namespaces", "nodes"], LOOK),
    _rule("discovery.k8s.io", ["endpointslices"], LOOK),
]
VOLUMES_RULES = [
    _rule("", ["persistentvolumes"], [*LOOK, "create", "delete"]),
    _rule("", ["persistentvolumeclaims"], LOOK),
    _rule("", ["events"], ["create", "patch"]),
]
KWOK_RULES = [
    _rule("", ["nodes", "pods"], [*LOOK, "create", "patch", "update", "delete"]),
    _rule("", ["nodes/status", "pods/status"], ["patch", "update"]),
    _rule("", ["events"], ["create", "patch", "update"]),
    _rule("coordination.k8s.io", ["leases"], [*LOOK, "create", "patch", "update", "delete"]),
]


def _role(name: str, rules: list[Object]) -> list[Object]:
    """A ClusterRole and its binding to the user of the same name."""
    role = {"apiVersion": f"{RBAC}/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules}
    return [role, _binding(name, name, {"kind": "User", "name": name, "apiGroup": RBAC})]


def _binding(name: str, role: str, subject: Object) -> Object:
    reference = {"apiGroup": RBAC, "kind": "ClusterRole", "name": role}
    head = {"apiVersion": f"{RBAC}/v1", "kind": "ClusterRoleBinding", "metadata": {"name": name}}
    return {**head, "roleRef": reference, "subjects": [subject]}


def _dns() -> list[Object]:
    meta = {"name": "kube-dns", "namespace": "kube-system"}
    service = {"clusterIP": DNS_SERVICE_IP, "ports": DNS_PORTS}
    labels = {"kubernetes.io/service-name": "kube-dns"}
    endpoints = [{"addresses": [CONTROL_IP], "conditions": {"ready": True}}]
    slice_meta = {"name": "kube-dns-control", "namespace": "kube-system", "labels": labels}
    slice_head = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": slice_meta}
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": service},
        {**slice_head, "addressType": "IPv4", "endpoints": endpoints, "ports": DNS_PORTS},
    ]


def _storage_class() -> Object:
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    head = {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass"}
    return {**head, "metadata": {"name": "standard", "annotations": default}, "provisioner": PROVISIONER}


def manifests() -> list[Object]:
    kubelet_clients = {"kind": "Group", "name": "thranite:kubelet-clients", "apiGroup": RBAC}
    return [
        _binding("thranite:kubelet-clients", "system:kubelet-api-admin", kubelet_clients),
        *_role("thranite:coredns", DNS_RULES),
        *_role("thranite:volumes", VOLUMES_RULES),
        *_role("thranite:kwok", KWOK_RULES),
        *_dns(),
        _storage_class(),
    ]
