"""What the API server and its watches may do to the operator: its process goes on, and the spec is realised."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.access import LocalCluster, Namespace, eventually
from tests.e2e.conftest import Operator, Services
from tests.e2e.test_serving import restarts, spec

pytestmark = pytest.mark.cluster
FLAKY: dict[str, Any] = {
    "seed": 8,
    "answers": [
        {"share": 0.1, "status": 409, "methods": ["PATCH", "POST", "DELETE"]},
        {"share": 0.05, "status": 429},
        {"share": 0.05, "status": 500},
        {"share": 0.05, "lost": True, "methods": ["PATCH", "POST", "DELETE"]},
    ],
}


@pytest.fixture
def unharmed(operator: Operator, local: LocalCluster) -> Iterator[None]:
    """The faults end with the test, and the operator is the very process that it was."""
    before = restarts(operator)
    yield
    local.faults(None)
    operator.kubectl("rollout", "status", "deployment/thranite", "--timeout=90s")
    assert restarts(operator) == before


def port(namespace: Namespace) -> int:
    return int(namespace.get("service", "x")["spec"]["ports"][0]["port"])


def idle(**fields: Any) -> dict[str, Any]:
    """A service without pods: what the operator does is seen in its other children."""
    return spec(replicas=0, **fields)


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize(("status", "words"), [(500, "watching failed: "), (410, "")])
def test_watches_that_end_with_an_error(
    services: Services, namespace: Namespace, operator: Operator, local: LocalCluster, status: int, words: str
) -> None:
    """kopf knows 410 and lists again; of others it says that they should be fatal for the operator."""
    services.apply(**idle())
    eventually(lambda: port(namespace) == 80, what="a Service")
    known = operator.log().count(words)
    local.faults({"watch": {"afterSeconds": 1, "status": status}})
    eventually(lambda: local.fault_report()["counts"].get("watches ended", 0) > 3, what="watches that ended")
    if words:
        eventually(lambda: operator.log().count(words) > known, what="the end of a watch in the log")
    services.patch({"service": {"port": 8080}})
    eventually(lambda: port(namespace) == 8080, what="the changed port")


@pytest.mark.usefixtures("unharmed")
def test_a_quarter_of_the_calls_fails(services: Services, namespace: Namespace, local: LocalCluster) -> None:
    local.faults(FLAKY)
    names = [f"s{number}" for number in range(4)]
    for name in names:
        services.apply(name, **idle())
    for name in names:
        services.patch({"service": {"port": 8080}}, name)
    local.faults({**FLAKY, "goneSeconds": 3, "gone": True})
    for name in names:
        services.patch({"networkPolicy": {"enabled": True}}, name)
    local.faults(None)
    eventually(lambda: settled(namespace, names), timeout=30, what="all services in the state that their specs ask for")
    assert len(namespace.get("networkpolicies")["items"]) == len(names)
    ports = {item["metadata"]["name"]: item["spec"]["ports"][0]["port"] for item in namespace.get("services")["items"]}
    assert all(ports[name] == 8080 for name in names)


def settled(namespace: Namespace, names: list[str]) -> bool:
    found = {item["metadata"]["name"]: item for item in namespace.get("infs")["items"]}
    return all(
        found[name].get("status", {}).get("observedGeneration") == found[name]["metadata"]["generation"]
        for name in names
    )
