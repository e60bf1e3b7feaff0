"""How the tests reach a cluster: kubectl for both kinds, the local cluster's own command for trouble."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, str(ROOT / "dev" / "cluster"))
Object = dict[str, Any]
Found = TypeVar("Found")


class CommandFailedError(Exception):
    """A command ended with an error; the message holds its output."""


def run(*command: str, text: str | None = None, timeout: float = 120, env: dict[str, str] | None = None) -> str:
    environment = {**os.environ, **(env or {})}
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=timeout, check=False, env=environment
    )
    if done.returncode != 0:
        raise CommandFailedError(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def eventually(look: Callable[[], Found], timeout: float = 60, what: str = "") -> Found:
    """The first result that is true; errors of commands count as not yet."""
    deadline = time.monotonic() + timeout
    seen: object = None
    while time.monotonic() < deadline:
        try:
            found = look()
            if found:
                return found
            seen = found
        except (CommandFailedError, subprocess.TimeoutExpired) as error:
            seen = error
        time.sleep(0.2)
    raise AssertionError(f"not within {timeout:.0f} s: {what or look}; last seen: {seen}")


class Cluster:
    """Any cluster, through kubectl."""

    def __init__(self, kubectl: str, kubeconfig: str | None, image: str) -> None:
        self._kubectl = kubectl
        self._environment: dict[str, str] = {}
        if kubeconfig:
            cache = str(Path(kubeconfig).parent / "kubectl-cache")
            self._environment = {"KUBECONFIG": kubeconfig, "KUBECACHEDIR": cache}
        self.image = image

    def kubectl(self, *words: str, text: str | None = None, timeout: float = 120) -> str:
        return run(self._kubectl, *words, text=text, timeout=timeout, env=self._environment)

    def start_kubectl(self, *words: str) -> subprocess.Popen[str]:
        environment = {**os.environ, **self._environment}
        pipe = subprocess.PIPE
        return subprocess.Popen([self._kubectl, *words], stdout=pipe, stderr=pipe, text=True, env=environment)

    def nodes(self) -> list[str]:
        return [node["metadata"]["name"] for node in self.get("nodes")["items"]]

    def get(self, *words: str) -> Any:
        return json.loads(self.kubectl("get", *words, "-o", "json"))

    def node_condition(self, name: str, kind: str = "Ready") -> str:
        conditions = self.get("node", name)["status"]["conditions"]
        return str(next(c["status"] for c in conditions if c["type"] == kind))


class LocalCluster(Cluster):
    """The cluster of dev/cluster, with all that it can be made to suffer."""

    def __init__(self, name: str) -> None:
        self.name = name
        facts = json.loads(self.command("status", "--json"))
        super().__init__(facts["kubectl"], facts["kubeconfig"], facts["image"])
        self.kubeconfig = Path(facts["kubeconfig"])
        self.faults_kubeconfig = Path(facts["faultsKubeconfig"])
        self.pki = self.kubeconfig.parent / "pki"
        self.logs = Path(facts["logs"])
        self.audit_log = Path(facts["auditLog"])
        self.tools = Path(facts["kubectl"]).parent

    def command(self, verb: str, *words: str, text: str | None = None, timeout: float = 120) -> str:
        return run(*COMMAND, verb, "--name", self.name, *words, text=text, timeout=timeout)

    def status(self) -> Any:
        return json.loads(self.command("status", "--json"))

    def faults(self, rules: Object | None) -> None:
        if rules is None:
            self.command("faults", "clear")
        else:
            self.command("faults", "set", json.dumps(rules))

    def fault_report(self) -> Any:
        return json.loads(self.command("faults", "get"))

    def audit(self) -> list[Object]:
        return [json.loads(line) for line in self.audit_log.read_text().splitlines()]


class Namespace:
    """A namespace of one test, which enforces the `restricted` profile."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name

    def kubectl(self, *words: str, text: str | None = None, timeout: float = 120) -> str:
        return self.cluster.kubectl("--namespace", self.name, *words, text=text, timeout=timeout)

    def apply(self, *objects: Object) -> None:
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("apply", "-f", "-", text=json.dumps(listed))

    def get(self, *words: str) -> Any:
        return json.loads(self.kubectl("get", *words, "-o", "json"))

    def pods(self, label: str) -> list[Object]:
        return list(self.get("pods", "-l", f"app={label}")["items"])

    def wait_ready(self, *names: str, timeout: int = 60) -> None:
        for name in names:
            self.kubectl("wait", "--for=condition=Ready", f"pod/{name}", f"--timeout={timeout}s")

    def wait_rolled(self, deployment: str, timeout: int = 90) -> None:
        self.kubectl("rollout", "status", f"deployment/{deployment}", f"--timeout={timeout}s")

    def python(self, pod: str, script: str, timeout: float = 60) -> str:
        return self.kubectl("exec", pod, "--", "python", "-c", script, timeout=timeout).strip()

    def fetch(self, pod: str, url: str) -> str:
        """What a GET from within a pod answers."""
        script = f"import urllib.request as u; print(u.urlopen({url!r}, timeout=3).read().decode())"
        return self.python(pod, script)

    def events(self, reason: str) -> list[str]:
        found = self.get("events", "--field-selector", f"reason={reason}")["items"]
        return [event["message"] for event in found]

    def container_state(self, pod: str) -> Object:
        statuses = self.get("pod", pod)["status"].get("containerStatuses", [])
        return dict(statuses[0]) if statuses else {}

    def delete_pods(self) -> None:
        """At once, and only when they are gone: what they held is free again."""
        self.kubectl("delete", "deployments,pods", "--all", "--grace-period=1", "--wait=true")
        eventually(lambda: not self.get("pods")["items"], what="the end of all pods")
