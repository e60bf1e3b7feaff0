"""From `kubectl apply` to answers, on a real cluster: scheduler, kubelet and containers are the real ones."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.access import LocalCluster, Namespace, eventually
from tests.cluster.manifests import pod, pod_spec
from tests.e2e.conftest import SYSTEM, Operator, Services
from tests.e2e.load import TOLD

pytestmark = pytest.mark.cluster

MODEL = Path(__file__).parent / "tiny-model"
NULL = ["--device=null", "--skip-tokenizer-init"]
ASK = """
import openai, sys
client = openai.OpenAI(base_url="{url}", api_key="none", max_retries=0, timeout=20)
options = dict(prompt=[1, 2, 3], max_tokens={tokens}, extra_body=dict(ignore_eos=True))
answer = client.completions.create(model="{model}", **options)
print(answer.usage.completion_tokens)
"""
ASK_ON = """
import openai, os
client = openai.OpenAI(base_url="{url}", api_key="none", max_retries=0, timeout=30)
print("asking", flush=True)
options = dict(prompt=[1, 2, 3], max_tokens=40, stream=True, extra_body=dict(ignore_eos=True))
good = 0
while not os.path.exists("{told}/stop"):
    stream = client.completions.create(model="{model}", **options)
    reasons = [choice.finish_reason for chunk in stream for choice in chunk.choices]
    assert "length" in reasons, reasons
    good += 1
print("good", good, flush=True)
"""


def spec(**fields: Any) -> dict[str, Any]:
    engine = {"extraArgs": [*NULL, "--null-step-seconds=0.005"]}
    return {
        "model": {"uri": f"file://{MODEL}"},
        "engine": engine,
        "resources": {"gpus": 0, "sharedMemory": "64Mi"},
        "drain": {"timeoutSeconds": 20},
        **fields,
    }


def client(namespace: Namespace, name: str = "client") -> None:
    namespace.apply(pod(name, pod_spec(namespace.cluster.image)))
    namespace.wait_ready(name)


def test_two_replicas_answer_by_name(services: Services, namespace: Namespace) -> None:
    services.apply(**spec(replicas=2))
    services.wait("Ready")
    services.wait("Progressing=False")
    assert services.condition("Progressing")[1] == "RolloutComplete"
    client(namespace)
    url = namespace.get("infs", "x")["status"]["url"]
    assert namespace.python("client", ASK.format(url=url, model="x", tokens=7)) == "7"
    headless = f"http://x-pods.{namespace.name}.svc:8000/v1"
    assert namespace.python("client", ASK.format(url=headless, model="x", tokens=3)) == "3"
    assert len(services.pods()) == 2


def test_kubectl_scale_get_and_explain(services: Services, namespace: Namespace) -> None:
    services.apply(**spec())
    services.wait("Ready")
    namespace.kubectl("scale", "infs/x", "--replicas=3")
    eventually(lambda: namespace.get("infs", "x")["status"].get("readyReplicas") == 3, what="three replicas")
    header, row = namespace.kubectl("get", "infs", "-o", "wide").splitlines()
    columns = ["NAME", "MODEL", "GPUS", "READY", "REASON", "DESIRED", "AVAILABLE", "AGE", "URL", "TEMPLATE", "MESSAGE"]
    assert header.split() == columns
    assert row.split()[:7] == ["x", f"file://{MODEL}", "0", "True", "Serving", "3", "3"]
    assert "maxModelLen" in namespace.kubectl("explain", "infs.spec.engine")
    path = f"/apis/thranite.dev/v1alpha1/namespaces/{namespace.name}/inferenceservices/x/scale"
    selector = json.loads(namespace.kubectl("get", "--raw", path))
    assert "app.kubernetes.io/instance=x" in selector["status"]["selector"]


def test_a_rollout_fails_no_request(services: Services, namespace: Namespace) -> None:
    services.apply(**spec(replicas=2))
    services.wait("Progressing=False")
    before = set(services.pods())
    url = f"http://x.{namespace.name}.svc/v1"
    script = ASK_ON.format(url=url, model="x", told=TOLD)
    mounts = [{"name": "told", "mountPath": TOLD}]
    volumes = {"volumes": [{"name": "told", "emptyDir": {}}]}
    namespace.apply(pod("client", pod_spec(namespace.cluster.image, script, volumeMounts=mounts, pod=volumes)))
    eventually(lambda: "asking" in namespace.kubectl("logs", "client"), what="the client's first word")
    services.patch({"engine": {"maxModelLen": 1024}})
    eventually(lambda: not before & set(services.pods()), what="new pods")
    services.wait("Progressing=False")
    time.sleep(3)  # with the new pods alone
    namespace.python("client", f"open('{TOLD}/stop', 'w').close()")
    last = eventually(
        lambda: re.search(r"^good (\d+)$", namespace.kubectl("logs", "client"), re.MULTILINE),
        what="the client's last word",
    )
    assert last is not None
    assert int(last[1]) > 20


def test_a_killed_pod_is_replaced(services: Services, namespace: Namespace) -> None:
    services.apply(**spec(replicas=2))
    services.wait("Progressing=False")
    victim = services.pods()[0]
    namespace.kubectl("delete", "pod", victim, "--grace-period=0", "--force")
    assert services.condition("Available")[0] == "True"
    eventually(lambda: len(services.pods()) == 2 and victim not in services.pods(), what="another pod")
    services.wait("Progressing=False")


def test_deletion_needs_no_operator(services: Services, namespace: Namespace, operator: Operator) -> None:
    services.apply(**spec())
    services.wait("Ready")
    operator.scale(0)
    try:
        namespace.kubectl("delete", "infs/x", "--timeout=20s")
        eventually(
            lambda: not namespace.get("deployments,services,pdb,controllerrevisions")["items"], what="no children"
        )
        eventually(lambda: not services.pods(), what="no pods")
    finally:
        operator.scale(1)


def test_an_operator_that_comes_back_changes_nothing(
    services: Services, namespace: Namespace, operator: Operator, local: LocalCluster
) -> None:
    services.apply(**spec(replicas=2))
    services.wait("Progressing=False")
    operator.kubectl("delete", "pod", "-l", "app.kubernetes.io/name=thranite-operator", "--wait=true")
    operator.kubectl("rollout", "status", "deployment/thranite", "--timeout=60s")
    pods = services.pods()
    services.patch({"replicas": 3})
    eventually(lambda: len(services.pods()) == 3, what="the new operator at work")
    assert set(pods) < set(services.pods())
    written = [f"{entry['verb']} {entry['objectRef']['resource']}" for entry in writes(local, namespace)]
    assert written.count("patch controllerrevisions") == 1
    assert written.count("patch services") == 2
    assert written.count("patch deployments") == 2


def test_an_api_server_that_was_away_ends_no_operator(
    services: Services, namespace: Namespace, operator: Operator, local: LocalCluster
) -> None:
    services.apply(**spec())
    services.wait("Ready")
    before = restarts(operator)
    local.command("kill", "kube-apiserver")
    time.sleep(6)  # several calls fail; each further one would come later
    local.command("start", "kube-apiserver")
    eventually(lambda: namespace.get("infs", "x"), what="an API server")
    services.patch({"replicas": 2})
    eventually(lambda: len(services.pods()) == 2, timeout=120, what="an operator that watches again")
    assert restarts(operator) == before


def restarts(operator: Operator) -> list[tuple[str, int]]:
    items = operator.cluster.get("pods", "--namespace", SYSTEM)["items"]
    return [(item["metadata"]["name"], item["status"]["containerStatuses"][0]["restartCount"]) for item in items]


def writes(local: LocalCluster, namespace: Namespace) -> list[dict[str, dict[str, str]]]:
    """What the operator wrote in this namespace, by the API server's own audit log."""
    return [
        entry
        for entry in local.audit()
        if entry.get("userAgent", "").startswith("thranite-operator")
        and entry.get("objectRef", {}).get("namespace") == namespace.name
        and entry["verb"] in ("create", "update", "patch", "delete")
        and entry.get("stage", "ResponseComplete") == "ResponseComplete"
    ]


def test_examples_are_accepted_by_the_cluster(operator: Operator, namespace: Namespace) -> None:
    for path in sorted((Path(__file__).parents[2] / "examples").glob("*.yaml")):
        answer = json.loads(namespace.kubectl("apply", "--dry-run=server", "-f", str(path), "-o", "json"))
        assert answer["kind"] in ("InferenceService", "List")
