"""The operator installed by Helm into a cluster, once for all tests here.

`CLUSTER=current` uses the current kubectl context; CLUSTER_IMAGE must then hold this checkout's wheel with its extras.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.cluster.access import Cluster, LocalCluster, Namespace
from tests.cluster.conftest import pytest_runtest_makereport
from tests.cluster.fixtures import namespace
from tests.support.helm import CHART

__all__ = ["namespace", "pytest_runtest_makereport"]
SYSTEM = "thranite-system"


@dataclass(frozen=True)
class Operator:
    cluster: Cluster

    def kubectl(self, *words: str) -> str:
        return self.cluster.kubectl("--namespace", SYSTEM, *words)

    def scale(self, replicas: int) -> None:
        self.kubectl("scale", "deployment/thranite", f"--replicas={replicas}")
        self.kubectl("rollout", "status", "deployment/thranite", "--timeout=90s")

    def log(self) -> str:
        return self.kubectl("logs", "deployment/thranite", "--tail=-1")


@pytest.fixture(scope="session")
def operator(cluster: Cluster) -> Iterator[Operator]:
    through = way_through_faults(cluster) if isinstance(cluster, LocalCluster) else ()
    with installed(cluster, "--set=resyncSeconds=60", *through) as operator:
        yield operator


@contextmanager
def installed(cluster: Cluster, *values: str) -> Iterator[Operator]:
    """Under the restricted profile, with the role that the chart grants and no other. `values`: helm's --set flags."""
    meta = {"name": SYSTEM, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}
    cluster.kubectl("apply", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": meta}))
    repository, _, tag = cluster.image.rpartition(":")
    images = [
        f"{image}.{key}" for image in ("image", "runtimeImage") for key in (f"repository={repository}", f"tag={tag}")
    ]
    chosen = [f"--set-string={value}" for value in images]
    helm(cluster, "upgrade", "--install", "thranite", str(CHART), *chosen, *values, "--wait", "--timeout", "120s")
    yield Operator(cluster)
    helm(cluster, "uninstall", "thranite", "--wait")


def way_through_faults(cluster: LocalCluster) -> list[str]:
    """The operator asks the API server through the fault proxy, which passes everything on until a test sets rules."""
    proxy = urlsplit(cluster.status()["faultsInside"])
    variables = {"KUBERNETES_SERVICE_HOST": proxy.hostname, "KUBERNETES_SERVICE_PORT": proxy.port}
    return [
        f"--set-string=extraEnv[{index}].{key}={text}"
        for index, (name, value) in enumerate(variables.items())
        for key, text in (("name", name), ("value", value))
    ]


def helm(cluster: Cluster, *words: str) -> None:
    program: str | Path | None = shutil.which("helm")
    environment = dict(os.environ)
    if isinstance(cluster, LocalCluster):
        program = cluster.tools / "helm"
        environment["KUBECONFIG"] = str(cluster.kubeconfig)
    assert program is not None, "helm is not in PATH"
    command = [program, *words, "--namespace", SYSTEM]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def services(operator: Operator, namespace: Namespace) -> Services:
    return Services(operator, namespace)


class Services:
    """InferenceServices of one test's namespace."""

    def __init__(self, operator: Operator, namespace: Namespace) -> None:
        self.operator, self.namespace = operator, namespace

    def apply(self, name: str = "x", **spec: object) -> None:
        body = {"apiVersion": "thranite.dev/v1alpha1", "kind": "InferenceService", "spec": spec}
        self.namespace.apply({**body, "metadata": {"name": name, "namespace": self.namespace.name}})

    def patch(self, patch: object, name: str = "x") -> None:
        self.namespace.kubectl("patch", f"infs/{name}", "--type=merge", f"--patch={json.dumps({'spec': patch})}")

    def wait(self, condition: str, name: str = "x", timeout: int = 90) -> None:
        self.namespace.kubectl("wait", f"infs/{name}", f"--for=condition={condition}", f"--timeout={timeout}s")

    def condition(self, kind: str, name: str = "x") -> tuple[str, str, str]:
        conditions = self.namespace.get("infs", name).get("status", {}).get("conditions", [])
        found = next((item for item in conditions if item["type"] == kind), None)
        return (found["status"], found["reason"], found["message"]) if found else ("", "", "")

    def pods(self, name: str = "x") -> list[str]:
        selector = f"app.kubernetes.io/instance={name},app.kubernetes.io/component=engine"
        items = self.namespace.get("pods", "-l", selector)["items"]
        return [item["metadata"]["name"] for item in items if "deletionTimestamp" not in item["metadata"]]
