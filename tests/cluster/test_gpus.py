"""Pretended GPUs: scheduled, given to containers, and taken away when they fall ill."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster import manifests
from tests.cluster.access import Cluster, LocalCluster, Namespace, eventually

pytestmark = pytest.mark.cluster
GPU = "nvidia.com/gpu"


@pytest.fixture
def node(local: LocalCluster, namespace: Namespace) -> Iterator[str]:
    """A node with two GPUs that are free again afterwards."""
    yield local.nodes()[0]
    namespace.delete_pods()


def gpu_pod(cluster: Cluster, name: str, node: str, count: int = 1) -> manifests.Object:
    chosen = {"nodeSelector": {"kubernetes.io/hostname": node}}
    spec = manifests.pod_spec(cluster.image, resources=manifests.gpus(count), pod=chosen)
    return manifests.pod(name, spec)


def allocatable(cluster: Cluster, node: str) -> int:
    return int(cluster.get("node", node)["status"]["allocatable"][GPU])


def test_the_third_pod_waits_for_one_of_two_gpus(local: LocalCluster, namespace: Namespace, node: str) -> None:
    names = ("first", "second", "third")
    namespace.apply(*(gpu_pod(local, name, node) for name in names[:2]))
    namespace.wait_ready(*names[:2])
    namespace.apply(gpu_pod(local, names[2], node))
    message = eventually(lambda: unschedulable(namespace, names[2]), what="the scheduler's reason")
    assert f"Insufficient {GPU}" in message
    seen = {namespace.kubectl("exec", name, "--", "printenv", "NVIDIA_VISIBLE_DEVICES").strip() for name in names[:2]}
    assert seen == {"0", "1"}
    namespace.kubectl("delete", "pod", names[0])
    namespace.wait_ready(names[2])


def unschedulable(namespace: Namespace, pod: str) -> str:
    conditions = namespace.get("pod", pod)["status"].get("conditions", [])
    return "".join(c["message"] for c in conditions if c.get("reason") == "Unschedulable")


def test_an_unhealthy_gpu_is_taken_away_and_given_back(local: LocalCluster, namespace: Namespace, node: str) -> None:
    local.command("gpu", node, "1", "unhealthy")
    try:
        eventually(lambda: allocatable(local, node) == 1, what="one GPU fewer")
        namespace.apply(gpu_pod(local, "both", node, count=2))
        eventually(lambda: unschedulable(namespace, "both"), what="a pod that does not fit")
    finally:
        local.command("gpu", node, "1", "healthy")
    eventually(lambda: allocatable(local, node) == 2, what="the GPU again")
    namespace.wait_ready("both")


def test_gpus_come_back_after_the_kubelet_does(local: LocalCluster, namespace: Namespace, node: str) -> None:
    namespace.apply(gpu_pod(local, "holder", node))
    namespace.wait_ready("holder")
    local.command("kill", f"{node}/kubelet")
    local.command("start", f"{node}/kubelet")
    eventually(lambda: allocatable(local, node) == 2, what="two GPUs")
    chosen = {"nodeSelector": {"kubernetes.io/hostname": node}}
    spec = manifests.pod_spec(local.image, resources=manifests.gpus(1), pod=chosen)
    # A Deployment, because the kubelet turns pods away that arrive before the device plugin has registered anew.
    namespace.apply(manifests.deployment("others", 2, spec))
    eventually(lambda: ready_and_waiting(namespace) == (1, 1), what="one more pod, not two")


def ready_and_waiting(namespace: Namespace) -> tuple[int, int]:
    phases = [pod["status"]["phase"] for pod in namespace.pods("others")]
    return phases.count("Running"), phases.count("Pending")
