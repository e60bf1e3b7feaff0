"""The story of test_autoscaling.py with a real model: each token is SmolLM2's, computed on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dev.fetch_smollm2 import fetch, is_present, model_directory
from tests.cluster.access import Namespace, eventually
from tests.cluster.manifests import pod, pod_spec
from tests.e2e.conftest import Services
from tests.e2e.load import Clients, Sizes, turns, wished
from tests.e2e.test_autoscaling import behavior, ready_replicas

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
CLAIM, MOUNT, NAME = "models", "/models", "smollm2"
USER = 10001  # of the runtime's containers: they must be able to read the files
PROMPT = "The ancient Greeks rowed their triremes"


@pytest.fixture
def uri(namespace: Namespace) -> str:
    """The model's, in a claim: pods see nothing of the machine's cache."""
    directory = model_directory()
    if not is_present(directory):
        fetch(directory)
    spec: dict[str, Any] = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}}
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": CLAIM}, "spec": spec}
    profile = {"type": "RuntimeDefault"}
    of_pod = {
        "securityContext": {"runAsNonRoot": True, "runAsUser": USER, "fsGroup": USER, "seccompProfile": profile},
        "volumes": [{"name": CLAIM, "persistentVolumeClaim": {"claimName": CLAIM}}],
    }
    mounts = [{"name": CLAIM, "mountPath": MOUNT}]
    namespace.apply(claim, pod("filler", pod_spec(namespace.cluster.image, pod=of_pod, volumeMounts=mounts)))
    namespace.wait_ready("filler")
    copy_into(namespace, directory)
    return f"pvc://{CLAIM}/{NAME}"


def copy_into(namespace: Namespace, directory: Path) -> None:
    namespace.kubectl("cp", str(directory), f"filler:{MOUNT}/{NAME}", timeout=300)


def spec(uri: str) -> dict[str, Any]:
    """Two sequences at once in a replica. All replicas share this machine's cores, so more of them finish no more."""
    return {
        "model": {"uri": uri},
        "engine": {"maxModelLen": 512, "maxSequences": 2, "env": [{"name": "OMP_NUM_THREADS", "value": "1"}]},
        "resources": {"gpus": 0, "cpu": "100m", "memory": "2Gi", "sharedMemory": "64Mi"},
        "drain": {"timeoutSeconds": 120},
        "autoscaling": {"maxReplicas": 4, "targetQueueDepth": 2, "intervalSeconds": 3, "behavior": behavior()},
    }


@pytest.mark.timeout(1200)
def test_a_real_model_is_scaled_up_and_back(services: Services, namespace: Namespace, uri: str) -> None:
    services.apply(**spec(uri))
    services.wait("Ready", timeout=180)
    clients, sizes = Clients(namespace, prompt=PROMPT, tokens=16, timeout=240), Sizes(lambda: wished(namespace))
    clients.start()
    assert sizes.watch(15) == {1}, "one client needs no more"
    clients.more()
    eventually(lambda: sizes.now() == 4, timeout=240, what="four replicas wished")
    eventually(lambda: ready_replicas(namespace) == 4, timeout=240, what="four replicas")
    sizes.watch(20)  # all of them at work
    clients.less()
    eventually(lambda: sizes.now() == 1, timeout=240, what="one replica again")
    eventually(lambda: len(services.pods()) == 1 == ready_replicas(namespace), timeout=180, what="three pods less")
    good, bad, errors = clients.stop()
    print(f"sizes {sizes.seen}, {good} requests answered, {bad} not; {namespace.events('SuccessfulRescale')}")
    assert (bad, turns(sizes.seen)) == (0, 1), (errors, sizes.seen)
    assert good > 20
