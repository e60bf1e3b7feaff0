"""Models from a hub: checked, then fetched, by a Job into a claim or by init containers; and refused with a reason."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.access import ROOT, LocalCluster, Namespace, eventually
from tests.cluster.manifests import pod, pod_spec
from tests.e2e.conftest import Services
from tests.e2e.test_serving import ASK, NULL, client, spec
from tests.support.pod_hub import TOKEN

pytestmark = pytest.mark.cluster

HUB = ROOT / "tests" / "support" / "pod_hub.py"
CLAIM = {"type": "PVC", "size": "1Gi", "accessMode": "ReadWriteOnce"}
EMPTY_DIR = {"type": "EmptyDir"}


@pytest.fixture
def hub(namespace: Namespace) -> str:
    """The URL of a hub in the test's namespace."""
    script = f"import runpy, sys; sys.argv[1:] = ['8080']; runpy.run_path('{HUB}', run_name='__main__')"
    ports = [{"port": 80, "targetPort": 8080}]
    front: dict[str, Any] = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "hub"}}
    front["spec"] = {"selector": {"app": "hub"}, "ports": ports}
    namespace.apply(pod("hub", pod_spec(namespace.cluster.image, script)), front)
    namespace.wait_ready("hub")
    return f"http://hub.{namespace.name}.svc"


def cached(hub: str, name: str, cache: dict[str, Any], **fields: Any) -> dict[str, Any]:
    env = [{"name": "HF_ENDPOINT", "value": hub}]
    model = {"uri": f"hf://test/{name}", "cache": cache, **fields.pop("model", {})}
    return {**spec(**fields), "model": model, "engine": {"extraArgs": NULL, "env": env}}


@pytest.mark.parametrize("cache", [CLAIM, EMPTY_DIR], ids=["claim", "empty-dir"])
def test_a_hub_model_is_fetched_and_served(
    services: Services, namespace: Namespace, hub: str, cache: dict[str, Any]
) -> None:
    services.apply(**cached(hub, "tiny", cache, replicas=2))
    services.wait("ModelCached")
    services.wait("Ready")
    client(namespace)
    url = f"http://x.{namespace.name}.svc/v1"
    assert namespace.python("client", ASK.format(url=url, model="x", tokens=4)) == "4"


REFUSED = {
    "unknown": ("UnsupportedModel", "MambaForCausalLM", {}),
    "large": ("DoesNotFit", "80", {"resources": {"gpus": 1, "gpuProduct": "NVIDIA-H100-80GB-HBM3"}}),
    "absent": ("ModelNotFound", "test/absent", {}),
    "gated": ("ModelNotFound", "test/gated", {}),
}


@pytest.mark.parametrize("model", REFUSED)
def test_a_model_that_cannot_be_served_is_refused_before_any_gpu(
    services: Services, namespace: Namespace, hub: str, model: str
) -> None:
    reason, text, fields = REFUSED[model]
    wanted = cached(hub, model, CLAIM, **fields)
    if model != "unknown":
        wanted["engine"]["extraArgs"] = []  # the null device holds any model
    wanted["scheduling"] = {}
    if "gpuProduct" in wanted["resources"]:
        label_nodes(namespace, wanted["resources"]["gpuProduct"])
    services.apply(**wanted)
    wanted_words = ("False", reason)
    eventually(lambda: services.condition("ModelCached")[:2] == wanted_words, what=f"ModelCached=False {reason}")
    eventually(lambda: services.condition("Ready")[:2] == wanted_words, what=f"Ready=False {reason}")
    assert text in services.condition("ModelCached")[2]
    assert services.pods() == []


def test_a_token_opens_a_gated_model(services: Services, namespace: Namespace, hub: str) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hf", "namespace": namespace.name}}
    namespace.apply({**secret, "stringData": {"token": TOKEN}})
    services.apply(**cached(hub, "gated", CLAIM, model={"tokenSecretRef": {"name": "hf"}}))
    services.wait("ModelCached")
    services.wait("Ready")


def label_nodes(namespace: Namespace, product: str) -> None:
    namespace.cluster.kubectl("label", "nodes", "--all", "--overwrite", f"nvidia.com/gpu.product={product}")


def test_the_loader_is_forgiven_once_the_spec_is_right(services: Services, namespace: Namespace, hub: str) -> None:
    services.apply(**cached(hub, "unknown", CLAIM))
    eventually(lambda: services.condition("ModelCached")[1] == "UnsupportedModel", what="the refusal")
    services.patch({"model": {"uri": "hf://test/tiny"}})
    services.wait("Ready")
    jobs = json.loads(namespace.kubectl("get", "jobs", "-o", "json"))["items"]
    assert len(jobs) == 1


@pytest.fixture
def growable(namespace: Namespace) -> Iterator[str]:
    """A StorageClass whose claims may grow."""
    meta = {"name": f"growable-{namespace.name}"}
    head = {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": meta}
    namespace.apply({**head, "provisioner": "thranite.dev/folder", "allowVolumeExpansion": True})
    yield meta["name"]
    namespace.cluster.kubectl("delete", "storageclass", meta["name"], "--wait=false")


def test_a_claim_grows_without_a_restart(
    services: Services, namespace: Namespace, hub: str, growable: str, local: LocalCluster
) -> None:
    assert local.name  # the class is of the local cluster's provisioner
    services.apply(**cached(hub, "tiny", {**CLAIM, "storageClass": growable}))
    services.wait("Ready")
    before = services.pods()
    services.patch({"model": {"cache": {"size": "2Gi"}}})
    eventually(lambda: requested(namespace) == "2Gi", what="a larger claim")
    assert namespace.get("infs", "x")["status"]["observedGeneration"] == 2
    assert services.condition("Ready")[1] == "Serving"
    assert services.pods() == before


def test_a_claim_that_cannot_grow_is_told(services: Services, namespace: Namespace, hub: str) -> None:
    services.apply(**cached(hub, "tiny", CLAIM))
    services.wait("ModelCached")
    services.patch({"model": {"cache": {"size": "2Gi"}}})
    eventually(lambda: services.condition("Ready")[:2] == ("False", "Forbidden"), what="the refusal")
    assert "must support resize" in services.condition("Ready")[2]
    assert requested(namespace) == "1Gi"


def requested(namespace: Namespace) -> str:
    return str(namespace.get("pvc", "x-cache")["spec"]["resources"]["requests"]["storage"])
