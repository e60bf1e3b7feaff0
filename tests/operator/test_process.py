"""The operator as a process, with exactly the rights that the chart grants, against a real API server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.apiserver import (
    LIMITED_TOKEN,
    LIMITED_USER,
    OPERATOR_TOKEN,
    OPERATOR_USER,
    ApiServer,
    free_ports,
    write_kubeconfig,
)
from tests.support.helm import one, render
from tests.support.kube import ApiRefusal, KubeApi, Object
from tests.support.manifests import condition, pod, ready, service

ROOT = Path(__file__).parents[2]


class Operator:
    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process, self.port, self.log = process, port, log

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=5)


@pytest.fixture(scope="module")
def role(api: KubeApi) -> None:
    api.create(one(render(), "ClusterRole", "thranite"))
    api.create({**one(render(), "ClusterRoleBinding"), "subjects": [user(OPERATOR_USER)]})


def user(name: str) -> Object:
    return {"kind": "User", "name": name, "apiGroup": "rbac.authorization.k8s.io"}


@contextmanager
def running_operator(
    server: ApiServer, folder: Path, *arguments: str, token: str = OPERATOR_TOKEN
) -> Iterator[Operator]:
    folder.mkdir(exist_ok=True)
    kubeconfig, log, (port,) = folder / "kubeconfig", folder / "operator.log", free_ports(1)
    write_kubeconfig(kubeconfig, server, token)
    command = [sys.executable, "-m", "thranite_operator", "--runtime-image=thranite:test", f"--port={port}", *arguments]
    environment = {**os.environ, "KUBECONFIG": str(kubeconfig), "PYTHONPATH": str(ROOT / "operator")}
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, cwd=folder)
    operator = Operator(process, port, log)
    try:
        until(lambda: serves(operator), log)
        yield operator
    finally:
        process.send_signal(signal.SIGTERM)
        code = ended(process, 30)
    assert code == 0, log.read_text()[-3000:]


def ended(process: subprocess.Popen[bytes], seconds: float) -> int:
    """The exit code; a process that does not end is killed."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def serves(operator: Operator) -> bool:
    try:
        return operator.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def until(check: Callable[[], bool], log: Path, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.2)


def is_ready(api: KubeApi, namespace: str, status: str, reason: str) -> bool:
    found = api.get("InferenceService", namespace, "x").get("status", {})
    return bool(found) and condition(api, namespace, "Ready")[:2] == (status, reason)


@pytest.mark.usefixtures("role")
def test_life_of_a_service(api_server: ApiServer, api: KubeApi, namespace: str, tmp_path: Path) -> None:
    with running_operator(api_server, tmp_path / "operator") as operator:
        assert operator.get("/livez").status_code == 200
        cache = {"type": "PVC", "size": "1Gi"}
        api.create(service(namespace, name="cached", cache=cache, replicas=2, networkPolicy={"enabled": True}))
        api.create(service(namespace, replicas=2, monitoring={"podMonitor": {"enabled": True}}))
        until(lambda: is_ready(api, namespace, "False", "Starting"), operator.log)
        pod(api, namespace, ready())
        until(lambda: is_ready(api, namespace, "True", "Serving"), operator.log)
        api.merge("InferenceService", namespace, "x", {"spec": {"replicas": 0}}, "scale")
        until(lambda: is_ready(api, namespace, "True", "ScaledToZero"), operator.log)
        until(lambda: api.find("Job", namespace, job_name(api, namespace)) is not None, operator.log)
        api.delete("Service", namespace, "x")
        until(lambda: api.find("Service", namespace, "x") is not None, operator.log)
        until(lambda: api.find("PodDisruptionBudget", namespace, "x") is None, operator.log)
        metrics = operator.get("/metrics").text
        assert 'thranite_operator_reconciles_total{outcome="error"} 0.0' in metrics, operator.log.read_text()
        assert 'thranite_operator_api_writes_total{kind="Deployment",verb="apply"}' in metrics
        assert "\nprocess_cpu_seconds_total " in metrics
        api.delete("InferenceService", namespace, "x")
        assert api.find("InferenceService", namespace, "x") is None
    assert "Traceback" not in operator.log.read_text()
    assert "orbidden" not in operator.log.read_text()


def job_name(api: KubeApi, namespace: str) -> str:
    names = [item["metadata"]["name"] for item in api.items("Job", namespace)]
    return str(names[0]) if names else "none"


@pytest.mark.usefixtures("role")
def test_what_the_role_does_not_grant(api_server: ApiServer, api: KubeApi, namespace: str) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "token", "namespace": namespace}}
    api.create(secret)
    with api_server.api(OPERATOR_TOKEN) as operator:
        for kind in ("Secret", "ConfigMap", "Role"):
            with pytest.raises(ApiRefusal, match="forbidden"):
                operator.items(kind, namespace)
        with pytest.raises(ApiRefusal, match="forbidden"):
            operator.merge("InferenceService", namespace, "x", {"spec": {"replicas": 2}})


@pytest.mark.usefixtures("role")
def test_a_role_in_one_namespace_is_enough_for_it(
    api_server: ApiServer, api: KubeApi, namespace: str, tmp_path: Path
) -> None:
    """With the chart's `watchNamespaces` there is a RoleBinding there, and none for the cluster."""
    other = f"{namespace}-other"
    api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": other}})
    rendered = render(f"watchNamespaces={{{namespace}}}")
    assert not [body for body in rendered if body["kind"] == "ClusterRoleBinding"]
    api.create({**one(rendered, "RoleBinding"), "subjects": [user(LIMITED_USER)]})
    arguments = [word for word in operator_arguments(rendered) if word.startswith("--namespace")]
    with running_operator(api_server, tmp_path / "operator", *arguments, token=LIMITED_TOKEN) as operator:
        api.create(service(other))
        api.create(service(namespace, replicas=2, cache={"type": "PVC", "size": "1Gi"}))
        until(lambda: is_ready(api, namespace, "False", "Loading"), operator.log)
        api.delete("Service", namespace, "x")
        until(lambda: api.find("Service", namespace, "x") is not None, operator.log)
        assert "status" not in api.get("InferenceService", other, "x")
    assert "orbidden" not in operator.log.read_text()


def operator_arguments(rendered: list[Object]) -> list[str]:
    found: list[str] = one(rendered, "Deployment")["spec"]["template"]["spec"]["containers"][0]["args"]
    return found
