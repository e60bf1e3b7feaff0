"""The CRD as the API server sees it: every rule by an accepted and a refused manifest, with the message."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from dev.api_reference import PAGE, page
from tests.support.kube import ApiRefusal, KubeApi, Object
from thranite_operator.autoscaling.spec import AutoscalingSpec, ScaleUp, Schedule
from thranite_operator.parsing import camel, parse

CRD = Path(__file__).parents[2] / "crds" / "thranite.dev_inferenceservices.yaml"
EXAMPLES = Path(__file__).parents[2] / "examples"
HUB, CLAIM, FILE = "hf://meta-llama/Llama-3.2-1B", "pvc://models/llama", "file:///models/llama"


@dataclass(frozen=True)
class Rule:
    """`accepted` and `refused` are specs; `message` is part of what the user reads."""

    message: str
    accepted: Object
    refused: Object


def hub(**fields: Any) -> Object:
    return {"model": {"uri": HUB}, **fields}


def model(uri: str, **fields: Any) -> Object:
    return {"model": {"uri": uri, **fields}}


def cache(**fields: Any) -> Object:
    return model(HUB, cache=fields)


def engine(**fields: Any) -> Object:
    return hub(engine=fields)


def autoscaling(**fields: Any) -> Object:
    return hub(autoscaling=fields)


def schedule(**fields: Any) -> Object:
    return {"name": "day", "start": "0 9 * * *", "durationSeconds": 3600, "minReplicas": 2, **fields}


def template(**fields: Any) -> Object:
    return hub(podTemplate=fields)


RULES = {
    "tensor-parallel-within-gpus": Rule(
        "raise resources.gpus or lower tensorParallelSize",
        hub(resources={"gpus": 4}, engine={"tensorParallelSize": 4}),
        hub(resources={"gpus": 2}, engine={"tensorParallelSize": 4}),
    ),
    "no-tensor-parallel-on-cpu": Rule(
        "a CPU replica is not split",
        hub(resources={"gpus": 0}),
        hub(resources={"gpus": 0}, engine={"tensorParallelSize": 2}),
    ),
    "uri-scheme": Rule("must start with hf://, pvc:// or file://", model(FILE), model("s3://bucket/llama")),
    "uri-hub": Rule("an hf:// uri is hf://OWNER/NAME", model(HUB), model("hf://llama")),
    "uri-claim": Rule("path without '..'", model(CLAIM), model("pvc://models/../secrets")),
    "uri-claim-name": Rule("with the claim's name", model("pvc://models"), model("pvc:///llama")),
    "uri-file": Rule("absolute path inside the container", model(FILE), model("file://models/llama")),
    "cache-hub-only": Rule("read where they lie", cache(type="EmptyDir"), model(CLAIM, cache={"type": "EmptyDir"})),
    "revision-hub-only": Rule("names a commit of a hub model", model(HUB, revision="main"), model(FILE, revision="x")),
    "token-hub-only": Rule(
        "is the hub's token", model(HUB, tokenSecretRef={"name": "hf"}), model(CLAIM, tokenSecretRef={"name": "hf"})
    ),
    "cache-claim-or-size": Rule(
        "exactly one of cache.claimName", cache(type="PVC", claimName="models"), cache(type="PVC")
    ),
    "cache-claim-and-size": Rule(
        "exactly one of cache.claimName",
        cache(type="PVC", size="10Gi"),
        cache(type="PVC", size="10Gi", claimName="models"),
    ),
    "cache-fields-need-type": Rule(
        "set cache.type to PVC or remove them", cache(type="PVC", size=1000), cache(type="EmptyDir", size="10Gi")
    ),
    "cache-class-needs-size": Rule(
        "describe the claim that cache.size asks for",
        cache(type="PVC", size="10Gi", storageClass="fast", accessMode="ReadWriteOnce", retain=True),
        cache(type="PVC", claimName="models", retain=True),
    ),
    "extra-args-repeat": Rule(
        "repeats a flag that a field sets", engine(extraArgs=["--seed=7"]), engine(extraArgs=["--max-model-len=10"])
    ),
    "extra-args-repeat-split": Rule(
        "repeats a flag that a field sets",
        engine(extraArgs=["--device", "null"]),
        engine(extraArgs=["--dtype", "auto"]),
    ),
    "extra-args-ports": Rule(
        "must not set addresses, ports or paths", engine(extraArgs=["--device=null"]), engine(extraArgs=["--port=80"])
    ),
    "env-repeat": Rule(
        "engine.env repeats an option that a field sets",
        engine(env=[{"name": "THRANITE_SEED", "value": "7"}]),
        engine(env=[{"name": "THRANITE_MAX_MODEL_LEN", "value": "10"}]),
    ),
    "env-ports": Rule(
        "engine.env must not set addresses, ports or paths",
        engine(env=[{"name": "THRANITE_ADMIN_KEY", "value": "x"}, {"name": "ADMIN_HOST", "value": "::"}]),
        engine(env=[{"name": "THRANITE_ADMIN_HOST", "value": "::"}]),
    ),
    "env-one-source": Rule(
        "either value or valueFrom",
        engine(env=[{"name": "A", "value": "1"}]),
        engine(env=[{"name": "A", "value": "1", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]),
    ),
    "env-reference": Rule(
        "exactly one of secretKeyRef and configMapKeyRef",
        engine(env=[{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}}]),
        engine(env=[{"name": "A", "valueFrom": {}}]),
    ),
    "gpu-product-needs-gpus": Rule(
        "set resources.gpus above 0",
        hub(resources={"gpuProduct": "NVIDIA-L4"}),
        hub(resources={"gpus": 0, "gpuProduct": "NVIDIA-L4"}),
    ),
    "autoscaling-needs-a-maximum": Rule(
        "maxReplicas is needed with mode Internal",
        autoscaling(mode="External"),
        autoscaling(targetQueueDepth=8),
    ),
    "autoscaling-min-within-max": Rule(
        "minReplicas must not exceed",
        autoscaling(minReplicas=2, maxReplicas=2),
        autoscaling(minReplicas=3, maxReplicas=2),
    ),
    "autoscaling-schedule-within-max": Rule(
        "must not ask for more replicas than",
        autoscaling(maxReplicas=4, schedules=[schedule(minReplicas=4)]),
        autoscaling(maxReplicas=3, schedules=[schedule(minReplicas=4)]),
    ),
    "autoscaling-cron-of-five-fields": Rule(
        "schedules[0].start",
        autoscaling(maxReplicas=4, schedules=[schedule(start="*/5 8-18 * * MON-FRI")]),
        autoscaling(maxReplicas=4, schedules=[schedule(start="0 0 9 * * *")]),
    ),
    "autoscaling-at-least-one": Rule(
        "minReplicas", autoscaling(maxReplicas=1), autoscaling(minReplicas=0, maxReplicas=1)
    ),
    "rollout-both-zero": Rule(
        "no pod could ever be replaced",
        hub(rollout={"maxSurge": 0, "maxUnavailable": 1}),
        hub(rollout={"maxSurge": 0, "maxUnavailable": 0}),
    ),
    "rollout-both-zero-percent": Rule(
        "no pod could ever be replaced",
        hub(rollout={"maxSurge": "25%", "maxUnavailable": "0%"}),
        hub(rollout={"maxSurge": "0%"}),
    ),
    "network-policy-from": Rule(
        "has no effect while networkPolicy.enabled is false",
        hub(networkPolicy={"enabled": True, "from": [{"podSelector": {"matchLabels": {"app": "web"}}}]}),
        hub(networkPolicy={"from": [{"podSelector": {}}]}),
    ),
    "template-labels": Rule(
        "podTemplate.labels must not start with",
        template(labels={"team": "a"}),
        template(labels={"app.kubernetes.io/name": "b"}),
    ),
    "template-annotations": Rule(
        "podTemplate.annotations must not start with",
        template(annotations={"note": "a"}),
        template(annotations={"thranite.dev/x": "b"}),
    ),
    "template-host-path": Rule(
        "must not use hostPath",
        template(volumes=[{"name": "more", "emptyDir": {}}]),
        template(volumes=[{"name": "more", "hostPath": {"path": "/"}}]),
    ),
    "template-volume-names": Rule(
        "the operator has volumes of these names",
        template(volumes=[{"name": "models", "emptyDir": {}}]),
        template(volumes=[{"name": "model", "emptyDir": {}}]),
    ),
    "template-container-names": Rule(
        "podTemplate.containers must not be named",
        template(containers=[{"name": "proxy", "image": "proxy:1"}]),
        template(containers=[{"name": "engine", "image": "proxy:1"}]),
    ),
    "template-init-container-names": Rule(
        "podTemplate.initContainers must not be named",
        template(initContainers=[{"name": "warm", "image": "warm:1"}]),
        template(initContainers=[{"name": "download", "image": "warm:1"}]),
    ),
}

TRANSITIONS = {
    "cache-grows": Rule("claims do not shrink", cache(type="PVC", size="20Gi"), cache(type="PVC", size="1Gi")),
    "cache-class-fixed": Rule(
        "cache.storageClass cannot change", cache(type="None"), cache(type="PVC", size="10Gi", storageClass="fast")
    ),
    "cache-access-mode-fixed": Rule(
        "cache.accessMode cannot change",
        cache(type="PVC", claimName="models"),
        cache(type="PVC", size="10Gi", accessMode="ReadWriteOnce"),
    ),
}


def service(spec: Object, namespace: str = "default", name: str = "x") -> Object:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "thranite.dev/v1alpha1", "kind": "InferenceService", "metadata": metadata, "spec": spec}


@pytest.mark.parametrize("name", RULES)
def test_every_rule_accepts_and_refuses(api: KubeApi, name: str) -> None:
    rule = RULES[name]
    api.create(service(rule.accepted), dry_run=True)
    with pytest.raises(ApiRefusal) as refusal:
        api.create(service(rule.refused), dry_run=True)
    assert refusal.value.code == 422
    assert rule.message in refusal.value.message


@pytest.mark.parametrize("name", TRANSITIONS)
def test_every_transition_rule_accepts_and_refuses(api: KubeApi, namespace: str, name: str) -> None:
    rule = TRANSITIONS[name]
    stored = api.create(service(cache(type="PVC", size="10Gi"), namespace))
    api.replace({**stored, "spec": rule.accepted}, dry_run=True)
    with pytest.raises(ApiRefusal) as refusal:
        api.replace({**stored, "spec": rule.refused}, dry_run=True)
    assert rule.message in refusal.value.message


@pytest.mark.parametrize(
    ("name", "message"),
    [("x" * 53, "at most 52 characters"), ("7b", "must start with a letter"), ("a.b", "a Service gets this name")],
)
def test_names_that_children_cannot_have_are_refused(api: KubeApi, name: str, message: str) -> None:
    api.create(service(hub(), name="a" * 52), dry_run=True)
    with pytest.raises(ApiRefusal) as refusal:
        api.create(service(hub(), name=name), dry_run=True)
    assert message in refusal.value.message


def test_every_rule_of_the_file_has_a_case() -> None:
    names = ["at most 52 characters", "must start with a letter"]
    tested = [rule.message for rule in (*RULES.values(), *TRANSITIONS.values())] + names
    untested = [text for text in messages(schema()) if not any(part in text for part in tested)]
    assert untested == []


def test_variables_are_refused_as_their_flags_are() -> None:
    properties = schema()["properties"]["spec"]["properties"]["engine"]["properties"]
    refused = {
        name: re.findall(r"matches\('\^(?:--|THRANITE_)\(([^)]*)\)", str(node))
        for name, node in (("flags", properties["extraArgs"]), ("variables", properties["env"]["items"]))
    }
    assert len(refused["flags"]) == 2
    assert [text.upper().replace("-", "_") for text in refused["flags"]] == refused["variables"]


def test_every_field_has_a_description_and_every_list_and_text_a_bound() -> None:
    spec = schema()["properties"]["spec"]
    assert [path for path, node in fields(spec, "spec") if "description" not in node] == []
    unbounded = [path for path, node in fields(spec, "spec") if not bounded(node)]
    assert unbounded == []


def test_the_file_fits_client_side_apply() -> None:
    assert CRD.stat().st_size < 60_000


def test_the_reference_page_is_made_from_the_file() -> None:
    assert PAGE.read_text() == page(), "run python dev/api_reference.py"


def test_defaults_fill_a_spec_of_one_field(api: KubeApi) -> None:
    spec = api.create(service(hub()), dry_run=True)["spec"]
    assert spec["replicas"] == 1
    assert spec["resources"] == {"gpus": 1, "gpuResourceName": "nvidia.com/gpu", "sharedMemory": "8Gi"}
    assert spec["rollout"] == {
        "maxSurge": 1,
        "maxUnavailable": 0,
        "progressDeadlineSeconds": 1800,
        "upgradePolicy": "Pinned",
    }
    assert spec["model"]["cache"] == {"type": "None", "retain": False}


def test_defaults_of_autoscaling_are_those_of_the_operator(api: KubeApi) -> None:
    body = service(autoscaling(maxReplicas=1, schedules=[schedule(minReplicas=1)]))
    filled = api.create(body, dry_run=True)["spec"]["autoscaling"]
    made = parse(AutoscalingSpec, filled)
    assert made == AutoscalingSpec(schedules=made.schedules)
    assert made.schedules == (Schedule(name="day", start="0 9 * * *", duration_seconds=3600, min_replicas=1),)
    assert filled["schedules"][0]["timeZone"] == made.schedules[0].time_zone
    assert set(filled["behavior"]["scaleUp"]) == {camel(item.name) for item in dataclasses.fields(ScaleUp)}


def test_replicas_can_be_written_while_autoscaling_is_on(api: KubeApi, namespace: str) -> None:
    api.create(service(hub(replicas=7, autoscaling={"maxReplicas": 3}), namespace))
    scale = api.merge("InferenceService", namespace, "x", {"spec": {"replicas": 2}}, "scale")
    assert scale["spec"]["replicas"] == 2


def test_scale_reads_and_writes_replicas(api: KubeApi, namespace: str) -> None:
    api.create(service(hub(), namespace))
    api.merge("InferenceService", namespace, "x", {"status": {"replicas": 1, "selector": "a=b"}}, "status")
    scale = api.merge("InferenceService", namespace, "x", {"spec": {"replicas": 3}}, "scale")
    assert (scale["spec"]["replicas"], scale["status"]) == (3, {"replicas": 1, "selector": "a=b"})
    assert api.get("InferenceService", namespace, "x")["spec"]["replicas"] == 3


def test_unknown_fields_are_named(api: KubeApi) -> None:
    body = service(hub(engine={"tensorParalelSize": 2}))
    path = "/apis/thranite.dev/v1alpha1/namespaces/default/inferenceservices"
    with pytest.raises(ApiRefusal, match="tensorParalelSize"):
        api.call("POST", path, body, params={"dryRun": "All", "fieldValidation": "Strict"})


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_examples_are_accepted(api: KubeApi, path: Path) -> None:
    for body in yaml.safe_load_all(path.read_text()):
        if body["kind"] == "InferenceService":
            body = copy.deepcopy(body)
            body["metadata"]["namespace"] = "default"
            api.create(body, dry_run=True)


def schema() -> Object:
    crd = yaml.safe_load(CRD.read_text())
    found: Object = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def messages(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for rule in node.get("x-kubernetes-validations", []):
            yield rule["message"]
        for child in node.values():
            yield from messages(child)


def fields(node: Object, path: str) -> Iterator[tuple[str, Object]]:
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from fields(child, f"{path}.{name}")
    if "items" in node:
        yield from fields(node["items"], f"{path}[]")


def bounded(node: Object) -> bool:
    if node.get("type") == "string":
        return "maxLength" in node or "enum" in node
    return node.get("type") != "array" or "maxItems" in node
