"""As strict as production: rights, profiles, admission, TLS, the kubelet's own doors, the audit log."""

from __future__ import annotations

import json
import os

import pytest

from tests.cluster import manifests
from tests.cluster.access import Cluster, CommandFailedError, LocalCluster, Namespace, eventually

pytestmark = pytest.mark.cluster
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
# What a client library does in a pod: the mounted authority and token, the Service's name.
ASK_API = f"""
import ssl, sys, urllib.error, urllib.request
context = ssl.create_default_context(cafile="{ACCOUNT}/ca.crt")
call = urllib.request.Request("https://kubernetes.default.svc" + sys.argv[1])
call.add_header("Authorization", "Bearer " + open("{ACCOUNT}/token").read())
try: print(urllib.request.urlopen(call, context=context, timeout=5).status)
except urllib.error.HTTPError as error: print(error.code)
"""


def test_a_pod_may_do_what_its_role_says_and_no_more(cluster: Cluster, namespace: Namespace) -> None:
    may_list = manifests.rule("", ["configmaps"], ["list"])
    spec = manifests.pod_spec(cluster.image, pod={"serviceAccountName": "reader"})
    namespace.apply(*manifests.account("reader", may_list), manifests.pod("client", spec))
    namespace.wait_ready("client")

    def ask(resource: str) -> str:
        path = f"/api/v1/namespaces/{namespace.name}/{resource}"
        return namespace.kubectl("exec", "client", "--", "python", "-c", ASK_API, path).strip()

    assert (ask("configmaps"), ask("secrets")) == ("200", "403")


def test_the_restricted_profile_is_enforced(cluster: Cluster, namespace: Namespace) -> None:
    spec = manifests.pod_spec(cluster.image)
    spec["containers"][0]["securityContext"] = {"privileged": True}
    with pytest.raises(CommandFailedError, match='violates PodSecurity "restricted'):
        namespace.apply(manifests.pod("bold", spec))


def test_an_owner_that_blocks_needs_the_right_to_finalize_it(local: LocalCluster, namespace: Namespace) -> None:
    rules = (
        manifests.rule("", ["configmaps"], ["create", "get", "patch"]),
        manifests.rule("apps", ["deployments"], ["get"]),
    )
    web = manifests.deployment("web", 0, manifests.pod_spec(local.image))
    namespace.apply(*manifests.account("maker", *rules), web)
    owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}
    owner["uid"] = namespace.get("deployment", "web")["metadata"]["uid"]

    def create(name: str, blocks: bool) -> None:
        meta = {"name": name, "ownerReferences": [{**owner, "controller": True, "blockOwnerDeletion": blocks}]}
        item = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta}
        user = f"--as=system:serviceaccount:{namespace.name}:maker"
        namespace.kubectl("create", user, "-f", "-", text=json.dumps(item))

    create("harmless", blocks=False)
    with pytest.raises(CommandFailedError, match="cannot set blockOwnerDeletion"):
        create("blocking", blocks=True)


def test_a_kubelet_may_change_its_own_node_only(local: LocalCluster) -> None:
    own, other = local.nodes()[:2]
    certificate = local.pki / f"kubelet-{own}"
    login = (f"--client-certificate={certificate}.crt", f"--client-key={certificate}.key", "--user=")

    def label(node: str, key: str) -> None:
        local.kubectl(*login, "label", "--overwrite", "node", node, f"{key}={os.getpid()}")

    label(own, "example.com/tried")
    with pytest.raises(CommandFailedError, match="only its own Node object"):
        label(other, "example.com/tried")
    with pytest.raises(CommandFailedError, match="is not allowed to modify labels"):
        label(own, "node-restriction.kubernetes.io/tried")


def test_the_kubelets_port_asks_who_is_there(local: LocalCluster, namespace: Namespace) -> None:
    namespace.kubectl("create", "serviceaccount", "nobody")
    token = namespace.kubectl("create", "token", "nobody").strip()
    node = local.get("node", local.nodes()[0])
    address = next(a["address"] for a in node["status"]["addresses"] if a["type"] == "InternalIP")
    url = f"https://{address}:10250/pods"

    def status(*flags: str) -> str:
        verified = ("--cacert", str(local.pki / "ca.crt"), "--silent", "--output", "/dev/null")
        return local.command("exec", "--", "curl", *verified, "--write-out", "%{http_code}", *flags, url)

    cluster_certificate = str(local.pki / "apiserver-kubelet")
    login = ("--cert", f"{cluster_certificate}.crt", "--key", f"{cluster_certificate}.key")
    assert status() == "401"
    assert status("--header", f"Authorization: Bearer {token}") == "403"
    assert status(*login) == "200"


def test_logs_and_exec_are_separate_rights(cluster: Cluster, namespace: Namespace) -> None:
    rules = (manifests.rule("", ["pods"], ["get"]), manifests.rule("", ["pods/log"], ["get"]))
    namespace.apply(*manifests.account("watcher", *rules))
    namespace.apply(manifests.pod("web", manifests.server_spec(cluster.image)))
    namespace.wait_ready("web")
    user = f"--as=system:serviceaccount:{namespace.name}:watcher"
    assert "serving" in namespace.kubectl("logs", user, "web")
    with pytest.raises(CommandFailedError, match="pods/exec"):
        namespace.kubectl("exec", user, "web", "--", "true")


def test_the_audit_log_tells_who_wrote_what(local: LocalCluster, namespace: Namespace) -> None:
    namespace.kubectl("create", "configmap", "noted")

    def entries() -> list[manifests.Object]:
        def wanted(entry: manifests.Object) -> bool:
            target = entry.get("objectRef", {})
            return (target.get("namespace"), target.get("name")) == (namespace.name, "noted")

        return [entry for entry in local.audit() if wanted(entry)]

    entry = eventually(entries, timeout=10)[0]
    assert (entry["verb"], entry["objectRef"]["resource"]) == ("create", "configmaps")
    assert entry["userAgent"].startswith("kubectl/")
    assert entry["responseStatus"]["code"] == 201


def test_two_clusters_share_nothing(local: LocalCluster, namespace: Namespace) -> None:
    other = LocalCluster(start_other())
    try:
        assert other.kubeconfig != local.kubeconfig
        uids = {c.get("namespace", "kube-system")["metadata"]["uid"] for c in (local, other)}
        assert len(uids) == 2
        assert namespace.name not in other.kubectl("get", "namespaces")
    finally:
        other.command("down")


def start_other() -> str:
    from tests.cluster.access import COMMAND, run

    name = f"other-{os.getpid()}"
    run(*COMMAND, "up", "--name", name, "--gpus", "0")
    return name
