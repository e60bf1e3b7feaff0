"""500 random valid edits: each is caught up with, children are those of an independent table, and then nothing is
written any more."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.apiserver import ApiServer
from tests.support.expectations import expected_children, problems_of
from tests.support.kube import ApiRefusal, KubeApi, Object
from tests.support.reconciling import Reconciling

SERVICES = 5
Draw = Callable[[random.Random], Any]


def choice(*values: Any) -> Draw:
    return lambda source: source.choice(values)


def maybe(draw: Draw) -> Draw:
    """None removes the field."""
    return lambda source: draw(source) if source.random() < 0.7 else None


URIS = ("hf://a/b", "hf://c/d", "pvc://models/x", "pvc://models", "file:///models/x")
FIELDS: dict[tuple[str, ...], Draw] = {
    ("model", "uri"): choice(*URIS),
    ("model", "revision"): maybe(choice("main", "v1", "refs/pr/1")),
    ("model", "name"): maybe(choice("llama", "org/model")),
    ("model", "tokenSecretRef"): maybe(choice({"name": "hf"}, {"name": "hf", "key": "other"})),
    ("model", "cache"): choice(
        None,
        {"type": "EmptyDir"},
        {"type": "PVC", "claimName": "shared"},
        {"type": "PVC", "size": "10Gi"},
        {"type": "PVC", "size": "10Gi", "retain": True},
    ),
    ("engine", "image"): maybe(choice("engine:1", "engine:2")),
    ("engine", "imagePullSecrets"): maybe(choice([{"name": "pull"}], [{"name": "pull"}, {"name": "more"}])),
    ("engine", "tensorParallelSize"): choice(1, 2, 4),
    ("engine", "dtype"): choice("auto", "bfloat16", "float32"),
    ("engine", "maxModelLen"): maybe(choice(1024, 8192)),
    ("engine", "maxBatchedTokens"): maybe(choice(512, 4096)),
    ("engine", "maxSequences"): maybe(choice(1, 256)),
    ("engine", "kvCacheMemoryFraction"): maybe(choice("0.5", "0.95")),
    ("engine", "env"): maybe(choice([{"name": "A", "value": "1"}], [{"name": "HOME", "value": "/home/x"}])),
    ("engine", "extraArgs"): maybe(choice(["--seed=1"], ["--device=null", "--seed=2"])),
    ("resources", "gpus"): choice(0, 1, 2, 4),
    ("resources", "gpuProduct"): maybe(choice("NVIDIA-L4", "NVIDIA-H100-80GB-HBM3")),
    ("resources", "cpu"): maybe(choice(1, "500m", "2.5", "1000m")),
    ("resources", "memory"): maybe(choice("4Gi", "1024Mi", 1000000000)),
    ("resources", "sharedMemory"): choice("8Gi", "0.5Gi"),
    ("replicas",): choice(0, 1, 2, 3, 7),
    ("rollout", "maxSurge"): choice(1, 0, "25%"),
    ("rollout", "maxUnavailable"): choice(0, 1, "50%"),
    ("rollout", "progressDeadlineSeconds"): choice(60, 1800, 3600),
    ("rollout", "upgradePolicy"): choice("Pinned", "Latest"),
    ("drain", "timeoutSeconds"): choice(0, 30, 300),
    ("scheduling", "nodeSelector"): maybe(choice({"pool": "a"}, {"pool": "b", "zone": "1"})),
    ("scheduling", "tolerations"): maybe(choice([{"key": "spot", "operator": "Exists"}])),
    ("scheduling", "topologySpread"): maybe(choice([{"topologyKey": "zone"}])),
    ("scheduling", "priorityClassName"): maybe(choice("high")),
    ("service", "port"): choice(80, 8080),
    ("service", "type"): choice("ClusterIP", "NodePort"),
    ("service", "annotations"): maybe(choice({"a": "1"}, {"b": "2"})),
    ("service", "apiKeysSecretRef"): maybe(choice({"name": "keys"})),
    ("networkPolicy",): choice({"enabled": False}, {"enabled": True}, {"enabled": True, "from": [{"podSelector": {}}]}),
    ("podTemplate", "labels"): maybe(choice({"team": "a"}, {"team": "b"})),
    ("podTemplate", "annotations"): maybe(choice({"note": "x"})),
    ("podTemplate", "volumes"): maybe(choice([{"name": "extra", "emptyDir": {}}])),
    ("podTemplate", "containers"): maybe(choice([{"name": "proxy", "image": "proxy:1"}])),
}


def edited(spec: Object, source: random.Random) -> Object:
    """One to four fields drawn anew."""
    result = {key: dict(value) if isinstance(value, dict) else value for key, value in spec.items()}
    for path in source.sample(sorted(FIELDS), source.randint(1, 4)):
        value = FIELDS[path](source)
        target = result if len(path) == 1 else result.setdefault(path[0], {})
        if value is None:
            target.pop(path[-1], None)
        else:
            target[path[-1]] = value
    return result


@pytest.mark.parametrize("edits", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_random_edits(api_server: ApiServer, api: KubeApi, namespace: str, edits: int) -> None:
    source, refused, accepted = random.Random(edits), 0, 0
    specs: dict[str, Object] = {f"s{index}": {"model": {"uri": "hf://a/b"}} for index in range(SERVICES)}
    with Reconciling(api_server) as operator:
        for name, spec in specs.items():
            api.create(manifest(namespace, name, spec))
        while accepted < edits:
            name = source.choice(sorted(specs))
            spec = edited(specs[name], source)
            try:
                stored = put(api, namespace, name, spec)
            except ApiRefusal as refusal:
                if refusal.code != 422:
                    raise
                refused += 1
                continue
            specs[name] = spec
            accepted += 1
            operator.reconcile(namespace, name)
            finish_jobs(api, namespace, name)
            finish_claims(api, namespace)
            operator.reconcile(namespace, name)
            after = api.get("InferenceService", namespace, name)
            assert after["status"]["observedGeneration"] == stored["metadata"]["generation"]
            problems = problems_of(after["status"])
            assert not problems, (spec, problems)
            compare(api, namespace, name, after)
            assert operator.writes(namespace, name) == {}, spec
    assert refused < 4 * edits, "the drawing makes too many invalid specs to mean anything"


def manifest(namespace: str, name: str, spec: Object) -> Object:
    meta = {"name": name, "namespace": namespace}
    return {"apiVersion": "thranite.dev/v1alpha1", "kind": "InferenceService", "metadata": meta, "spec": spec}


def put(api: KubeApi, namespace: str, name: str, spec: Object) -> Object:
    version = api.get("InferenceService", namespace, name)["metadata"]["resourceVersion"]
    body = manifest(namespace, name, spec)
    body["metadata"]["resourceVersion"] = version
    return api.replace(body)


def finish_jobs(api: KubeApi, namespace: str, name: str) -> None:
    """Nothing runs Jobs here: the loader, if there is one, is done at once."""
    stamp = {"lastTransitionTime": "2026-01-01T00:00:00Z", "status": "True"}
    conditions = [{"type": "SuccessCriteriaMet", **stamp}, {"type": "Complete", **stamp}]
    times = {"startTime": stamp["lastTransitionTime"], "completionTime": stamp["lastTransitionTime"]}
    for job in api.items("Job", namespace, f"app.kubernetes.io/instance={name}"):
        if "deletionTimestamp" not in job["metadata"] and not job.get("status", {}).get("completionTime"):
            status = {**times, "succeeded": 1, "conditions": conditions}
            api.merge("Job", namespace, job["metadata"]["name"], {"status": status}, "status")


def finish_claims(api: KubeApi, namespace: str) -> None:
    """Nothing lifts the protection of deleted claims here."""
    for claim in api.items("PersistentVolumeClaim", namespace):
        if "deletionTimestamp" in claim["metadata"]:
            patch = {"metadata": {"finalizers": None}}
            api.merge("PersistentVolumeClaim", namespace, claim["metadata"]["name"], patch)


def compare(api: KubeApi, namespace: str, name: str, stored: Object) -> None:
    for kind, expected in expected_children(name, stored["spec"]).items():
        found = {
            item["metadata"]["name"]: item
            for item in api.items(kind, namespace, f"app.kubernetes.io/instance={name}")
            if "deletionTimestamp" not in item["metadata"] and kept(item, stored)
        }
        assert sorted(found) == sorted(expected), (kind, stored["spec"])
        for child, check in expected.items():
            for path, value in check.items():
                assert look(found[child], path) == value, (kind, child, path, stored["spec"])


def kept(item: Object, stored: Object) -> bool:
    """A claim that was retained stays without an owner; it is nobody's child."""
    owners = [owner["uid"] for owner in item["metadata"].get("ownerReferences", [])]
    claim = stored["spec"]["model"]["cache"]
    return owners == [stored["metadata"]["uid"]] or (not owners and bool(claim.get("retain")))


def look(obj: Any, path: str) -> Any:
    """`spec.template.spec.containers.0.image`; None for what is absent. A dot of a key is written with a backslash."""
    for part in path.replace("\\.", "\0").split("."):
        key = part.replace("\0", ".")
        if isinstance(obj, list):
            obj = obj[int(key)] if int(key) < len(obj) else None
        else:
            obj = (obj or {}).get(key)
    return obj


pytestmark = pytest.mark.timeout(600)
