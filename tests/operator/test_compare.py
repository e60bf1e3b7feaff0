"""The no-op guard: what asks for a write, in tables."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.kube import Object
from thranite_operator.compare import differences, needs_write
from thranite_operator.quantities import parse_quantity, same_quantity


def applied(spec: Object, owned: Object, manager: str = "thranite-operator") -> Object:
    """An object whose fields `owned` (FieldsV1) the manager once applied."""
    entry = {"manager": manager, "operation": "Apply", "fieldsV1": {"f:spec": owned}}
    return {"metadata": {"managedFields": [entry]}, "spec": spec}


UNCHANGED: dict[str, tuple[Object, Object]] = {
    "defaults of the server": ({"a": 1}, {"a": 1, "b": 2}),
    "an empty value that it drops": ({"a": 1, "flag": False, "none": {}}, {"a": 1}),
    "quantities": (
        {"limits": {"cpu": "1000m", "memory": "1024Mi"}, "emptyDir": {"sizeLimit": "0.5Gi"}},
        {"limits": {"cpu": "1", "memory": "1Gi"}, "emptyDir": {"sizeLimit": "512Mi"}},
    ),
    "a field of the container's resources": (
        {"env": [{"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}]},
        {"env": [{"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "0"}}}]},
    ),
    "another order of a merged list": (
        {"containers": [{"name": "a"}, {"name": "b"}]},
        {"containers": [{"name": "b", "x": 1}, {"name": "a"}]},
    ),
    "an injected sidecar": ({"containers": [{"name": "a"}]}, {"containers": [{"name": "a"}, {"name": "mesh"}]}),
}
CHANGED: dict[str, tuple[Object, Object]] = {
    "a value": ({"a": 1}, {"a": 2}),
    "a missing field": ({"a": 1}, {}),
    "a quantity": ({"limits": {"cpu": "2"}}, {"limits": {"cpu": "1"}}),
    "a missing item": ({"env": [{"name": "A", "value": "1"}]}, {"env": []}),
    "an item": ({"env": [{"name": "A", "value": "1"}]}, {"env": [{"name": "A", "value": "2"}]}),
    "an argument": ({"args": ["--a"]}, {"args": ["--b"]}),
    "one argument more": ({"args": ["--a"]}, {"args": ["--a", "--b"]}),
    "the order of arguments": ({"args": ["--a", "--b"]}, {"args": ["--b", "--a"]}),
}
ABANDONED: dict[str, tuple[Object, Object, Object]] = {
    "a field": ({"a": 1}, {"a": 1, "b": 2}, {"f:a": {}, "f:b": {}}),
    "an item": (
        {"env": [{"name": "A"}]},
        {"env": [{"name": "A"}, {"name": "B"}]},
        {"f:env": {'k:{"name":"A"}': {".": {}, "f:name": {}}, 'k:{"name":"B"}': {".": {}, "f:name": {}}}},
    ),
    "a key of a map that is ours as a whole": (
        {"nodeSelector": {"pool": "a"}},
        {"nodeSelector": {"pool": "a", "zone": "1"}},
        {"f:nodeSelector": {}},
    ),
    "a field of an item of a list that is ours as a whole": (
        {"ingress": [{"ports": [{"port": 1}]}]},
        {"ingress": [{"ports": [{"port": 1, "protocol": "TCP"}], "from": [{"podSelector": {}}]}]},
        {"f:ingress": {}},
    ),
}


@pytest.mark.parametrize("name", UNCHANGED)
def test_no_write(name: str) -> None:
    planned, observed = UNCHANGED[name]
    assert list(differences({"spec": planned}, {"metadata": {}, "spec": observed})) == []


@pytest.mark.parametrize("name", CHANGED)
def test_a_write(name: str) -> None:
    planned, observed = CHANGED[name]
    assert needs_write({"spec": planned}, {"metadata": {}, "spec": observed})


@pytest.mark.parametrize("name", ABANDONED)
def test_what_we_applied_and_no_longer_plan_asks_for_a_write(name: str) -> None:
    planned, observed, owned = ABANDONED[name]
    assert needs_write({"spec": planned}, applied(observed, owned))
    assert not needs_write({"spec": planned}, applied(observed, owned, "somebody-else"))


def test_a_missing_object_asks_for_a_write() -> None:
    assert needs_write({"spec": {}}, None)


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [("1", 1, True), ("0.1", "100m", True), ("1Ki", "1024", True), ("1k", "1Ki", False), ("1e3", "1k", True)],
)
def test_quantities(left: Any, right: Any, same: bool) -> None:
    assert same_quantity(left, right) is same


def test_what_is_no_quantity() -> None:
    assert parse_quantity("8 bananas") is None
    assert parse_quantity("1Xi") is None
    assert not same_quantity("all", "none")
