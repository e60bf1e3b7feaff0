"""Template pinning: what rolls pods, and what must not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.crd_fields import crd_fields, dataclass_fields
from tests.support.kube import KubeApi, Object
from tests.support.manifests import service, template_label
from tests.support.reconciling import SETTINGS, Reconciling
from thranite_operator import names
from thranite_operator.parsing import template_inputs
from thranite_operator.render.pod_template import pod_template
from thranite_operator.revision import mark, spec_hash
from thranite_operator.spec import InferenceService, Spec, parse_service

GOLDEN = Path(__file__).parent / "golden_templates.json"
NEWER = dataclasses.replace(SETTINGS, runtime_image="thranite:newer", version="2.0.0")
SERVICES: dict[str, dict[str, Any]] = {
    "smallest": {},
    "cpu": {"resources": {"gpus": 0, "cpu": 4, "memory": "8Gi"}, "uri": "pvc://models/smollm2"},
    "file": {"uri": "file:///models/llama"},
    "empty-dir": {"cache": {"type": "EmptyDir"}},
    "claim": {"cache": {"type": "PVC", "size": "100Gi"}},
    "large": {
        "cache": {"type": "PVC", "claimName": "models"},
        "engine": {
            "tensorParallelSize": 4,
            "dtype": "bfloat16",
            "maxModelLen": 8192,
            "maxBatchedTokens": 4096,
            "maxSequences": 128,
            "kvCacheMemoryFraction": "0.85",
            "env": [{"name": "HF_ENDPOINT", "value": "http://hub"}],
            "extraArgs": ["--seed=7"],
        },
        "resources": {"gpus": 4, "gpuProduct": "NVIDIA-H100-80GB-HBM3", "memory": "200Gi", "cpu": "16"},
        "scheduling": {"nodeSelector": {"pool": "gpu"}, "priorityClassName": "high"},
        "service": {"apiKeysSecretRef": {"name": "keys"}},
        "drain": {"timeoutSeconds": 600},
        "podTemplate": {"labels": {"team": "a"}, "containers": [{"name": "proxy", "image": "proxy:1"}]},
    },
}


def parsed(body: Object) -> InferenceService:
    return parse_service({**body, "metadata": {**body["metadata"], "uid": "u", "generation": 1}})


def hashes(name: str) -> dict[str, str]:
    made = parsed(service("default", **SERVICES[name]))
    template = mark(pod_template(made, SETTINGS))
    return {"spec": spec_hash(made.spec), "template": template["metadata"]["labels"][names.TEMPLATE]}


@pytest.mark.parametrize("name", SERVICES)
def test_golden_hashes(name: str) -> None:
    """A changed template hash means that a new operator renders otherwise: fine, as specs are pinned; then write the
    new one here. A changed spec hash means that every model rolls when the operator is upgraded: never."""
    assert hashes(name) == json.loads(GOLDEN.read_text())[name]


def test_only_fields_of_the_template_enter_the_hash() -> None:
    base = parsed(service("default"))
    outside: list[dict[str, Any]] = [
        {"replicas": 9},
        {"rollout": {"maxSurge": 3, "progressDeadlineSeconds": 60, "upgradePolicy": "Latest"}},
        {"networkPolicy": {"enabled": True}},
        {"monitoring": {"podMonitor": {"enabled": True}}},
        {"service": {"port": 8080, "type": "NodePort", "annotations": {"a": "b"}}},
    ]
    for fields in outside:
        other = parsed(service("default", **fields))
        assert spec_hash(other.spec) == spec_hash(base.spec), fields
        assert pod_template(other, SETTINGS) == pod_template(base, SETTINGS), fields


def test_values_equal_to_defaults_are_dropped() -> None:
    explicit: dict[str, Any] = {
        "engine": {"dtype": "auto", "tensorParallelSize": 1, "env": []},
        "resources": {"gpus": 1},
    }
    assert template_inputs(parsed(service("default", **explicit)).spec) == {
        "model": {"uri": "hf://meta-llama/Llama-3.2-1B"}
    }


def test_defaults_are_those_of_the_crd(api: KubeApi) -> None:
    """The API server fills a spec in; parsed, it must equal the spec that only dataclass defaults fill."""
    body = service("default")
    filled = api.create(body, dry_run=True)
    assert len(filled["spec"]) > len(body["spec"])
    assert parsed(filled).spec == parsed(body).spec


def test_every_field_of_the_crd_is_parsed() -> None:
    crd = yaml.safe_load((Path(__file__).parents[2] / "crds" / "thranite.dev_inferenceservices.yaml").read_text())
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    assert crd_fields(spec) == dataclass_fields(Spec)


def test_a_changed_renderer_does_not_roll_an_untouched_spec(
    api: KubeApi, namespace: str, operator: Reconciling
) -> None:
    api.create(service(namespace))
    operator.reconcile(namespace)
    before = template_label(api, namespace)
    operator.restart(NEWER)
    assert set(operator.writes(namespace)) == {"apply InferenceService"}
    assert template_label(api, namespace) == before
    revision = api.get("InferenceService", namespace, "x")["status"]["templateRevision"]
    assert (revision["operatorVersion"], revision["newerAvailable"]) == ("1.0.0", True)
    assert operator.writes(namespace) == {}


def test_a_touched_spec_is_rendered_anew(api: KubeApi, namespace: str, operator: Reconciling) -> None:
    api.create(service(namespace))
    operator.reconcile(namespace)
    operator.restart(NEWER)
    api.merge("InferenceService", namespace, "x", {"spec": {"engine": {"maxModelLen": 4096}}})
    operator.reconcile(namespace)
    assert image(api, namespace) == "thranite:newer"
    revision = api.get("InferenceService", namespace, "x")["status"]["templateRevision"]
    assert (revision["operatorVersion"], revision["newerAvailable"]) == ("2.0.0", False)


def test_policy_latest_rolls_a_newer_rendering_out(api: KubeApi, namespace: str, operator: Reconciling) -> None:
    api.create(service(namespace, rollout={"upgradePolicy": "Latest"}))
    operator.reconcile(namespace)
    operator.restart(NEWER)
    operator.reconcile(namespace)
    assert image(api, namespace) == "thranite:newer"
    assert operator.writes(namespace) == {}
    api.merge("InferenceService", namespace, "x", {"spec": {"rollout": {"upgradePolicy": "Pinned"}}})
    operator.reconcile(namespace)
    assert image(api, namespace) == "thranite:newer"


def test_ten_scale_writes_do_not_roll(api: KubeApi, namespace: str, operator: Reconciling) -> None:
    api.create(service(namespace))
    operator.reconcile(namespace)
    before = api.get("Deployment", namespace, "x")["spec"]["template"]
    for replicas in range(2, 12):
        api.merge("InferenceService", namespace, "x", {"spec": {"replicas": replicas}}, "scale")
        operator.reconcile(namespace)
        deployment = api.get("Deployment", namespace, "x")
        assert deployment["spec"]["replicas"] == replicas
        assert deployment["spec"]["template"] == before
    assert len(api.items("ControllerRevision", namespace)) == 1


def test_a_new_field_of_the_crd_with_a_default_does_not_roll(
    api: KubeApi, namespace: str, operator: Reconciling
) -> None:
    """A later CRD fills in a default that this operator's dataclasses need not even know."""
    api.create(service(namespace))
    operator.reconcile(namespace)
    stored = api.get("InferenceService", namespace, "x")
    widened = {**stored, "spec": {**stored["spec"], "engine": {**stored["spec"]["engine"], "speculation": "off"}}}
    assert spec_hash(parse_service(widened).spec) == spec_hash(parse_service(stored).spec)


def test_a_reverted_spec_finds_its_former_revision(api: KubeApi, namespace: str, operator: Reconciling) -> None:
    api.create(service(namespace))
    operator.reconcile(namespace)
    first = template_label(api, namespace)
    api.merge("InferenceService", namespace, "x", {"spec": {"engine": {"maxModelLen": 4096}}})
    operator.reconcile(namespace)
    assert template_label(api, namespace) != first
    operator.restart(NEWER)
    api.merge("InferenceService", namespace, "x", {"spec": {"engine": {"maxModelLen": None}}})
    operator.reconcile(namespace)
    assert template_label(api, namespace) == first
    assert image(api, namespace) == "thranite:test"
    assert len(api.items("ControllerRevision", namespace)) == 2


def test_old_revisions_are_removed_but_never_the_one_in_use(
    api: KubeApi, namespace: str, operator: Reconciling
) -> None:
    api.create(service(namespace))
    for length in range(100, 114):
        api.merge("InferenceService", namespace, "x", {"spec": {"engine": {"maxModelLen": length}}})
        operator.reconcile(namespace)
    stored = {item["metadata"]["name"] for item in api.items("ControllerRevision", namespace)}
    assert 10 <= len(stored) <= 11
    assert api.get("InferenceService", namespace, "x")["status"]["templateRevision"]["name"] in stored


def image(api: KubeApi, namespace: str) -> str:
    found: str = api.get("Deployment", namespace, "x")["spec"]["template"]["spec"]["containers"][0]["image"]
    return found
