"""The Helm chart: what it renders, what its schema refuses, and what its role allows the operator."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.apiserver import ApiServer
from tests.support.helm import CHART, HelmRefusal, helm, one, render
from tests.support.kube import KubeApi
from thranite_operator.main import parser

CRD = Path(__file__).parents[2] / "crds" / "thranite.dev_inferenceservices.yaml"


def test_lint() -> None:
    assert "0 chart(s) failed" in helm("lint", str(CHART), "--strict", "--kube-version", "1.36.0")


def test_the_chart_has_the_crd_of_the_repository() -> None:
    assert (CHART / "files" / "inferenceservices.yaml").read_text() == CRD.read_text()
    rendered = one(render(), "CustomResourceDefinition")
    assert rendered["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert rendered == yaml.safe_load(CRD.read_text())


def test_the_crd_can_be_left_out_or_go_with_the_release() -> None:
    assert not [body for body in render("crds.install=false") if body["kind"] == "CustomResourceDefinition"]
    assert "annotations" not in one(render("crds.keep=false"), "CustomResourceDefinition")["metadata"]


def test_the_operator_takes_the_arguments_it_gets() -> None:
    arguments = container(render("watchNamespaces={a,b}", "runtimeImage.tag=v7", "logLevel=debug"))["args"]
    args = parser().parse_args(arguments)
    assert (args.runtime_image, args.namespace, args.log_level) == ("thranite/runtime:v7", ["a", "b"], "debug")


def test_images_by_tag_and_by_digest() -> None:
    assert container(render())["image"] == "thranite/operator:0.1.0"
    digest = "sha256:" + "a" * 64
    assert container(render(f"image.digest={digest}", "image.tag=v7"))["image"] == f"thranite/operator@{digest}"


def test_one_operator_under_restricted_pod_security() -> None:
    spec = one(render(), "Deployment")["spec"]
    assert (spec["replicas"], spec["strategy"]["type"]) == (1, "Recreate")
    pod = spec["template"]["spec"]
    assert pod["securityContext"]["runAsUser"] == 10001
    own = pod["containers"][0]["securityContext"]
    assert own == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_role_reads_no_secrets_and_has_no_wildcards() -> None:
    for role in [body for body in render() if body["kind"] == "ClusterRole"]:
        for rule in role["rules"]:
            words = rule["apiGroups"] + rule["resources"] + rule["verbs"]
            assert "*" not in words
            assert "secrets" not in words
            assert not any("exec" in word or "attach" in word for word in words)
            assert not {"escalate", "bind", "impersonate"} & set(words)


def test_namespaces_get_a_binding_each_and_the_cluster_none() -> None:
    bodies = render("watchNamespaces={a,b}")
    bindings = [body for body in bodies if body["kind"] == "RoleBinding"]
    assert [body["metadata"]["namespace"] for body in bindings] == ["a", "b"]
    assert not [body for body in bodies if body["kind"] == "ClusterRoleBinding"]


def test_the_roles_of_users_do_not_hang_on_that_of_the_operator() -> None:
    own, users = {"thranite"}, {"thranite-view", "thranite-edit"}
    for create, aggregate in itertools.product((True, False), repeat=2):
        bodies = render(f"rbac.create={create}".lower(), f"rbac.aggregate={aggregate}".lower())
        roles = {body["metadata"]["name"] for body in bodies if body["kind"] == "ClusterRole"}
        assert roles == (own if create else set()) | (users if aggregate else set())


@pytest.mark.parametrize(
    ("release", "name", "namespace"),
    [
        ("123", "thranite-123", "no"),
        ("thr.v1", "thr-v1", "on"),
        ("null", "null", "456"),
        ("1e3", "thranite-1e3", "1e3"),
    ],
)
def test_releases_and_namespaces_may_have_any_name(
    api_server: ApiServer, api: KubeApi, release: str, name: str, namespace: str
) -> None:
    """YAML reads these as booleans and numbers, and the API server takes no dots and no digit first in a Service."""
    here = ("--namespace", namespace, "--kubeconfig", str(api_server.kubeconfig))
    words = ["priorityClassName=no", "podLabels.no=on", "podAnnotations.1=2", "metrics.service.annotations.a=no"]
    words += ["serviceAccount.annotations.b=3", "nodeSelector.c=true", "monitoringNamespace=off"]
    sets = [part for word in words for part in ("--set-string", word)]
    sets += ["--set-json", f'watchNamespaces=["{namespace}"]', "--set", "crds.install=false"]
    helm("install", release, str(CHART), "--create-namespace", *here, *sets)
    try:
        labels = api.get("Service", namespace, f"{name}-metrics")["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == release
        (subject,) = api.get("RoleBinding", namespace, name)["subjects"]
        assert (subject["name"], subject["namespace"]) == (name, namespace)
        template = api.get("Deployment", namespace, name)["spec"]["template"]
        assert template["metadata"]["labels"]["no"] == "on"
        assert template["spec"]["serviceAccountName"] == name
        assert f"--namespace={namespace}" in template["spec"]["containers"][0]["args"]
    finally:
        helm("uninstall", release, *here)


@pytest.mark.parametrize(
    ("release", "name"),
    [("a" * 53, "a" * 52), ("a" * 50 + "--b", "a" * 50), ("1" + "a" * 52, "thranite-1" + "a" * 42), ("a.b-c", "a-b-c")],
)
def test_objects_are_named_after_the_release(release: str, name: str) -> None:
    bodies = [body for body in render(release=release) if body["kind"] != "CustomResourceDefinition"]
    names = {body["metadata"]["name"] for body in bodies}
    assert names == {name, f"{name}-metrics", f"{name}-view", f"{name}-edit"}


@pytest.mark.parametrize("label", ["app.kubernetes.io/name", "app.kubernetes.io/instance", "helm.sh/chart"])
def test_labels_of_the_chart_are_not_those_of_the_values(label: str) -> None:
    key = label.replace(".", r"\.")
    with pytest.raises(HelmRefusal, match=r"podLabels/.*set by the chart alone: remove this label"):
        render(f"podLabels.{key}=thranite-operator")


def test_the_schema_knows_every_label_that_pods_get() -> None:
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())["properties"]["podLabels"]
    assert set(schema["properties"]) == set(one(render(), "Deployment")["spec"]["template"]["metadata"]["labels"])


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ("replicas=2", "replicas"),
        ("image.repo=x", "repo"),
        ("workers=0", "workers"),
        ("logLevel=loud", "logLevel"),
        ("image.digest=abc", "digest"),
        ("resyncSeconds=1", "resyncSeconds"),
    ],
)
def test_the_schema_refuses(value: str, word: str) -> None:
    with pytest.raises(HelmRefusal, match=word):
        render(value)


def test_every_value_is_in_the_schema() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())
    assert set(values) == set(schema["properties"]) - {"global"}


def container(bodies: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = one(bodies, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    return found
