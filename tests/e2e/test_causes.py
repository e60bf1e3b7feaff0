"""Why a service is not ready, as the real scheduler and kubelet cause it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cluster.access import LocalCluster, eventually
from tests.e2e.conftest import Services
from tests.e2e.test_serving import NULL, spec

pytestmark = pytest.mark.cluster

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ErrImagePull": ("ErrImagePull", "nowhere", {"engine": {"image": "localhost/nowhere:1", "extraArgs": NULL}}),
    "Unschedulable": ("Unschedulable", "Insufficient nvidia.com/gpu", {"resources": {"gpus": 64}}),
    "ModelNotFound": ("ModelNotFound", "/nowhere", {"model": {"uri": "file:///nowhere"}}),
    "InvalidConfiguration": ("InvalidConfiguration", "", {"engine": {"extraArgs": [*NULL, "--seed=seven"]}}),
    "OOMKilled": ("OOMKilled", "resources.memory", {"resources": {"gpus": 0, "memory": "12Mi"}}),
    "CreateContainerConfigError": (
        "CreateContainerConfigError",
        "nosecret",
        {
            "engine": {
                "extraArgs": NULL,
                "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "nosecret", "key": "a"}}}],
            }
        },
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_cause_is_in_the_ready_condition(services: Services, name: str) -> None:
    reason, text, fields = CASES[name]
    services.apply(**spec(**fields))
    eventually(lambda: services.condition("Ready")[:2] == ("False", reason), what=f"Ready=False {reason}")
    assert text in services.condition("Ready")[2]
    if name == "Unschedulable":
        assert services.condition("Progressing")[1] == "WaitingForGPU"
    else:
        assert services.condition("Degraded")[:2] == ("True", reason)


def test_a_hanging_engine_is_restarted_and_told(services: Services, local: LocalCluster) -> None:
    services.apply(**spec())
    services.wait("Ready")
    (pod,) = services.pods()
    local.command("kill", f"pod/{services.namespace.name}/{pod}/engine")
    eventually(lambda: "lastFailure" in services.namespace.get("infs", "x")["status"], what="a failure on record")
    failure = services.namespace.get("infs", "x")["status"]["lastFailure"]
    assert (failure["pod"], failure["container"]) == (pod, "engine")
    services.wait("Ready")
