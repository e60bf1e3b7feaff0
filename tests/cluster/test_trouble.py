"""Components and pod processes that are killed, frozen and brought back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import manifests
from tests.cluster.access import CommandFailedError, LocalCluster, Namespace, eventually
from tests.cluster.apiclient import Broken, PlainClient

pytestmark = [
    pytest.mark.cluster,
    # Python leaves a socket open whose peer resets it just before the TLS handshake.
    pytest.mark.filterwarnings("ignore:unclosed <ssl:ResourceWarning"),
]


@pytest.fixture
def whole(local: LocalCluster) -> Iterator[LocalCluster]:
    """The cluster, with every component running again afterwards."""
    yield local
    for target in local.status()["cut"]:
        local.command("heal", target)
    for name, state in local.status()["components"].items():
        if state == "stopped":
            local.command("resume", name)
        elif state not in ("running", "not started"):
            local.command("start", name)
    eventually(lambda: "ok" in local.kubectl("get", "--raw", "/readyz"), what="a ready API server")


def test_the_api_server_is_killed_and_comes_back(whole: LocalCluster, namespace: Namespace, tmp_path: Path) -> None:
    client = PlainClient(whole.kubeconfig, tmp_path)
    namespace.kubectl("create", "configmap", "kept")
    whole.command("kill", "kube-apiserver")
    assert whole.status()["components"]["kube-apiserver"] == "killed by SIGKILL"
    with pytest.raises(Broken):
        client.call("GET", "/readyz")
    whole.command("start", "kube-apiserver")
    eventually(lambda: namespace.get("configmap", "kept"), what="the API server")


def test_a_frozen_store_makes_the_api_server_slow_not_wrong(
    whole: LocalCluster, namespace: Namespace, tmp_path: Path
) -> None:
    client = PlainClient(whole.kubeconfig, tmp_path)
    path = f"/api/v1/namespaces/{namespace.name}/secrets"
    whole.command("stop", "etcd")
    assert whole.status()["components"]["etcd"] == "stopped"
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "late"}}
    with pytest.raises(TimeoutError):
        client.call("POST", path, body, timeout=2)
    whole.command("resume", "etcd")
    eventually(lambda: client.call("GET", path)[0] == 200, what="the store")


def test_nothing_is_scheduled_without_a_scheduler(whole: LocalCluster, namespace: Namespace) -> None:
    whole.command("kill", "kube-scheduler")
    namespace.apply(manifests.pod("waits", manifests.pod_spec(whole.image)))
    with pytest.raises(CommandFailedError):
        namespace.wait_ready("waits", timeout=2)
    whole.command("start", "kube-scheduler")
    namespace.wait_ready("waits")


def test_a_killed_process_of_a_pod_is_restarted(whole: LocalCluster, namespace: Namespace) -> None:
    namespace.apply(manifests.pod("web", manifests.server_spec(whole.image)))
    namespace.wait_ready("web")
    whole.command("kill", f"pod/{namespace.name}/web/main")
    eventually(lambda: namespace.container_state("web")["restartCount"] == 1, what="a restart")
    last = namespace.container_state("web")["lastState"]["terminated"]
    assert last["exitCode"] == 137
    namespace.wait_ready("web")


def test_a_frozen_process_of_a_pod_fails_its_probe(whole: LocalCluster, namespace: Namespace) -> None:
    probe = manifests.ready_probe(failureThreshold=1)
    namespace.apply(manifests.pod("web", manifests.server_spec(whole.image, readinessProbe=probe)))
    namespace.wait_ready("web")
    whole.command("stop", f"pod/{namespace.name}/web")
    eventually(lambda: not namespace.container_state("web")["ready"], what="not ready")
    whole.command("resume", f"pod/{namespace.name}/web")
    namespace.wait_ready("web")
    assert namespace.container_state("web")["restartCount"] == 0


def test_pods_outlive_their_kubelet_and_containerd(whole: LocalCluster, namespace: Namespace) -> None:
    namespace.apply(manifests.pod("web", manifests.server_spec(whole.image)))
    namespace.wait_ready("web")
    node = namespace.get("pod", "web")["spec"]["nodeName"]
    for component in ("kubelet", "containerd"):
        whole.command("kill", f"{node}/{component}")
    for component in ("containerd", "kubelet"):
        whole.command("start", f"{node}/{component}")
    eventually(lambda: "serving" in namespace.kubectl("logs", "web"), what="logs through the new kubelet")
    assert namespace.container_state("web")["restartCount"] == 0


def test_a_pod_that_is_cut_off_is_not_ready(whole: LocalCluster, namespace: Namespace) -> None:
    probe = manifests.ready_probe(failureThreshold=1)
    namespace.apply(manifests.pod("web", manifests.server_spec(whole.image, readinessProbe=probe)))
    namespace.wait_ready("web")
    target = f"pod/{namespace.name}/web"
    whole.command("cut", target)
    eventually(lambda: not namespace.container_state("web")["ready"], what="not ready")
    assert "serving" in namespace.kubectl("logs", "web")
    whole.command("heal", target)
    namespace.wait_ready("web")


def test_an_api_server_that_is_cut_off_does_not_answer(whole: LocalCluster, tmp_path: Path) -> None:
    client = PlainClient(whole.kubeconfig, tmp_path)
    whole.command("cut", "kube-apiserver")
    try:
        with pytest.raises(TimeoutError):
            client.call("GET", "/readyz", timeout=2)
    finally:
        whole.command("heal", "kube-apiserver")
    assert client.call("GET", "/api/v1/nodes")[0] == 200


def test_a_kubelet_that_is_cut_off_leaves_its_pods_alone(whole: LocalCluster, namespace: Namespace) -> None:
    namespace.apply(manifests.pod("web", manifests.server_spec(whole.image)))
    namespace.wait_ready("web")
    node = namespace.get("pod", "web")["spec"]["nodeName"]
    whole.command("cut", f"{node}/kubelet")
    try:
        eventually(lambda: whole.node_condition(node) == "Unknown", what="NotReady")
        other = next(name for name in whole.nodes() if name != node)
        url = f"http://{namespace.get('pod', 'web')['status']['podIP']}:{manifests.PORT}/"
        assert whole.command("exec", "--node", other, "--", "curl", "--silent", "--max-time", "5", url).startswith(
            "web"
        )
    finally:
        whole.command("heal", f"{node}/kubelet")
    eventually(lambda: whole.node_condition(node) == "True", what="Ready again")


def test_an_unknown_target_is_named(whole: LocalCluster) -> None:
    with pytest.raises(CommandFailedError, match="no component 'kube-nothing'; there are: coredns, etcd"):
        whole.command("kill", "kube-nothing")
