"""Why a service is not ready, as the real scheduler and kubelet cause it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cluster.access import LocalCluster, Namespace, eventually
from tests.e2e.conftest import Services
from tests.e2e.test_serving import NULL, spec

pytestmark = pytest.mark.cluster
UNKNOWN_PROFILE = {"seccompProfile": {"type": "Localhost", "localhostProfile": "nowhere.json"}}
NO_PROGRAM = "localhost/thranite-sandbox:local"  # holds /pause alone; every node of the local cluster has it
SIDECAR = {"name": "sidecar", "image": NO_PROGRAM, "command": ["/pause"], "securityContext": UNKNOWN_PROFILE}
FREEZE_ENGINE = """
import os, pathlib, signal
found = [path.parent.name for path in pathlib.Path("/proc").glob("[0-9]*/cmdline")
         if b"supervisor.engine_process" in path.read_bytes() and path.parent.name != str(os.getpid())]
(pid,) = map(int, found)
os.kill(pid, signal.SIGSTOP)
"""
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ErrImagePull": ("ErrImagePull", "nowhere", {"engine": {"image": "localhost/nowhere:1", "extraArgs": NULL}}),
    "Unschedulable": ("Unschedulable", "Insufficient nvidia.com/gpu", {"resources": {"gpus": 64}}),
    "ModelNotFound": ("ModelNotFound", "/nowhere", {"model": {"uri": "file:///nowhere"}}),
    "InvalidConfiguration": ("InvalidConfiguration", "", {"engine": {"extraArgs": [*NULL, "--seed=seven"]}}),
    "OOMKilled": ("OOMKilled", "resources.memory", {"resources": {"gpus": 0, "memory": "12Mi"}}),
    "RunContainerError": (
        "RunContainerError",
        "executable file not found",
        {"engine": {"image": NO_PROGRAM, "extraArgs": NULL}},
    ),
    "CreateContainerError": ("CreateContainerError", "seccomp", {"podTemplate": {"containers": [SIDECAR]}}),
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


def test_a_hanging_engine_is_restarted_and_told(services: Services, namespace: Namespace) -> None:
    """The engine's process is frozen, and the rest of the pod sees that it gives no sign of life."""
    services.apply(**spec(engine={"extraArgs": [*NULL, "--stall-timeout=3"]}))
    services.wait("Ready")
    (pod,) = services.pods()
    namespace.python(pod, FREEZE_ENGINE)
    failure = eventually(lambda: last_failure(services), what="a failure on record")
    assert (failure["pod"], failure["reason"], failure["exitCode"]) == (pod, "EngineStalled", 9)
    assert "the engine hangs: no sign of life" in failure["message"]
    services.wait("Ready")
    assert services.pods() == [pod]


def test_a_killed_engine_is_restarted_and_told(services: Services, local: LocalCluster) -> None:
    services.apply(**spec())
    services.wait("Ready")
    (pod,) = services.pods()
    local.command("kill", f"pod/{services.namespace.name}/{pod}/engine")
    failure = eventually(lambda: last_failure(services), what="a failure on record")
    assert (failure["pod"], failure["container"]) == (pod, "engine")
    services.wait("Ready")


@pytest.mark.slow
def test_a_frozen_container_is_restarted_by_its_liveness_probe(services: Services, local: LocalCluster) -> None:
    """Nobody in the pod can tell why; kubelet's probes do."""
    services.apply(**spec(drain={"timeoutSeconds": 0}))
    services.wait("Ready")
    (pod,) = services.pods()
    local.command("stop", f"pod/{services.namespace.name}/{pod}/engine")
    eventually(lambda: services.condition("Ready")[1] == "ReadinessProbeFailed", what="its readiness probe's words")
    eventually(lambda: services.condition("Degraded")[1] == "ProbeFailed", timeout=180, what="its liveness probe's")
    assert "Liveness probe failed" in services.condition("Degraded")[2]
    services.wait("Ready")
    failure = last_failure(services)
    assert (failure["pod"], failure["exitCode"]) == (pod, 137)


def last_failure(services: Services) -> Any:
    return services.namespace.get("infs", "x")["status"].get("lastFailure")
