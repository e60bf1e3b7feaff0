"""Replicas by load on a real cluster: `--device null` runtimes, kube-proxy, real scrapes."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.cluster.access import LocalCluster, Namespace, eventually
from tests.cluster.manifests import pod, pod_spec
from tests.e2e.conftest import SYSTEM, Operator, Services
from tests.e2e.test_serving import MODEL, NULL

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

# A few clients all the time and the others for a while; a new connection each request, so that new pods get some.
CLIENTS = """
import openai, threading, time
def ask():
    client = openai.OpenAI(base_url="{url}", api_key="none", max_retries=0, timeout=60)
    options = dict(prompt=[1, 2, 3], max_tokens=40, stream=True, extra_body=dict(ignore_eos=True))
    stream = client.completions.create(model="x", **options)
    reasons = [choice.finish_reason for chunk in stream for choice in chunk.choices]
    assert "length" in reasons, reasons
    client.close()
good, bad = [], []
def work(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try: ask(); good.append(1)
        except Exception as error: bad.append(repr(error))
threads = [threading.Thread(target=work, args=({alone} if index < {few} else {together},)) for index in range(20)]
print("asking", flush=True)
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print("good", len(good), "bad", len(bad), bad[:3], flush=True)
"""


def spec(**autoscaling: Any) -> dict[str, Any]:
    behavior = {
        "scaleUp": {"periodSeconds": 5},
        "scaleDown": {"stabilizationWindowSeconds": 5, "pods": 4, "periodSeconds": 5},
    }
    return {
        "model": {"uri": f"file://{MODEL}"},
        "engine": {"maxSequences": 4, "extraArgs": [*NULL, "--null-step-seconds=0.02"]},
        "resources": {"gpus": 0, "sharedMemory": "64Mi"},
        "drain": {"timeoutSeconds": 20},
        "autoscaling": {"maxReplicas": 4, "targetQueueDepth": 2, "intervalSeconds": 1, "behavior": behavior}
        | autoscaling,
    }


def replicas(namespace: Namespace) -> int:
    return int(namespace.get("infs", "x")["spec"]["replicas"])


def load(namespace: Namespace, alone: int, together: int, few: int = 1) -> None:
    """20 clients for `together` seconds, of which `few` stay until `alone`."""
    script = CLIENTS.format(url=f"http://x.{namespace.name}.svc/v1", alone=alone, together=together, few=few)
    namespace.apply(pod("client", pod_spec(namespace.cluster.image, script)))
    eventually(lambda: "asking" in namespace.kubectl("logs", "client"), what="the clients' first word")


def verdict(namespace: Namespace) -> str:
    return eventually(
        lambda: next((line for line in namespace.kubectl("logs", "client").splitlines() if "good" in line), ""),
        timeout=180,
        what="the clients' last word",
    )


def test_load_adds_replicas_and_takes_them_back(services: Services, namespace: Namespace, local: LocalCluster) -> None:
    services.apply(**spec())
    services.wait("Ready")
    load(namespace, alone=100, together=45)
    eventually(lambda: replicas(namespace) == 4, timeout=60, what="four replicas wished")
    eventually(lambda: namespace.get("infs", "x")["status"]["readyReplicas"] == 4, what="four replicas")
    pods = local.get("pods", "--namespace", SYSTEM)["items"]
    (name,) = [item["metadata"]["name"] for item in pods if "deletionTimestamp" not in item["metadata"]]
    local.command("kill", f"pod/{SYSTEM}/{name}")  # whatever it was about to do
    assert replicas(namespace) == 4
    eventually(lambda: replicas(namespace) == 1, timeout=150, what="one replica again")
    assert " bad 0 " in verdict(namespace)
    events = namespace.events("SuccessfulRescale")
    assert any(message.startswith("1 → ") for message in events), events
    assert any("→ 1: " in message for message in events), events


def test_scrapes_that_get_through_to_nobody_change_nothing(
    services: Services, namespace: Namespace, operator: Operator, local: LocalCluster
) -> None:
    """Only the operator's way to the admin ports is closed: pods are ready, and nothing says that they are idle."""
    before = operator.log().count("Traceback")  # of other tests
    address = next(
        item["status"]["podIP"]
        for item in local.get("pods", "--namespace", SYSTEM)["items"]
        if item["metadata"]["name"].startswith("thranite-") and "deletionTimestamp" not in item["metadata"]
    )
    rule = ("FORWARD", "-s", address, "-p", "tcp", "--dport", "8001", "-j", "DROP")
    local.command("exec", "--node", "node0", "--", "iptables", "-I", *rule)
    local.command("exec", "--node", "node1", "--", "iptables", "-I", *rule)
    try:
        services.apply(**spec(), replicas=3)
        services.wait("Ready")
        eventually(
            lambda: services.condition("ScalingActive")[:2] == ("False", "MetricsUnavailable"), what="the reason"
        )
        time.sleep(20)  # four times the window after which idle replicas go
        assert replicas(namespace) == 3
    finally:
        local.command("exec", "--node", "node0", "--", "iptables", "-D", *rule)
        local.command("exec", "--node", "node1", "--", "iptables", "-D", *rule)
    eventually(lambda: replicas(namespace) == 1, timeout=60, what="one replica, now that they are seen to be idle")
    assert operator.log().count("Traceback") == before


def test_gpus_that_run_out_are_told(services: Services, namespace: Namespace, operator: Operator) -> None:
    before = operator.log().count("Traceback")  # of other tests
    slow = {"behavior": {"scaleUp": {"pods": 1, "percent": 0, "periodSeconds": 5}}, "maxReplicas": 20}
    services.apply(**{**spec(**slow), "resources": {"gpus": 2, "sharedMemory": "64Mi"}})
    services.wait("Ready")
    load(namespace, alone=60, together=60)
    eventually(
        lambda: services.condition("ScalingLimited")[:2] == ("True", "InsufficientGPU"), timeout=90, what="the reason"
    )
    wished = replicas(namespace)
    time.sleep(10)
    assert replicas(namespace) == wished == len(services.pods()) <= 3
    assert operator.log().count("Traceback") == before
