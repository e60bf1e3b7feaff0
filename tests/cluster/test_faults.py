"""Every fault that the proxy in front of the API server can be told, seen by a plain client."""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.access import LocalCluster, Namespace, Object, eventually
from tests.cluster.apiclient import Broken, PlainClient

pytestmark = [
    pytest.mark.cluster,
    # Python leaves a socket open whose peer resets it just before the TLS handshake.
    pytest.mark.filterwarnings("ignore:unclosed <ssl:ResourceWarning"),
]


class Maps:
    """ConfigMaps of the test's namespace through the proxy."""

    def __init__(self, client: PlainClient, namespace: str) -> None:
        self.client = client
        self.path = f"/api/v1/namespaces/{namespace}/configmaps"

    def create(self, name: str, timeout: float = 10) -> int:
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}
        return self.client.call("POST", self.path, body, timeout)[0]

    def list(self) -> int:
        return self.client.call("GET", self.path)[0]


@pytest.fixture
def maps(local: LocalCluster, namespace: Namespace, tmp_path: Path) -> Iterator[Maps]:
    local.faults(None)
    yield Maps(PlainClient(local.faults_kubeconfig, tmp_path), namespace.name)
    local.faults(None)


def names(namespace: Namespace) -> set[str]:
    items = namespace.get("configmaps")["items"]
    return {item["metadata"]["name"] for item in items} - {"kube-root-ca.crt"}


def test_without_rules_it_passes_everything_on(local: LocalCluster, namespace: Namespace, maps: Maps) -> None:
    assert (maps.create("one"), maps.create("one"), maps.list()) == (201, 409, 200)
    assert [write["status"] for write in local.fault_report()["writes"]] == [201, 409]
    assert local.command("kubectl", "--faults", "auth", "whoami").count("admin") == 1


def test_only_a_certificate_names_its_user(local: LocalCluster, maps: Maps, tmp_path: Path) -> None:
    stranger = PlainClient(local.faults_kubeconfig, tmp_path, user=False)
    forged = {"X-Remote-User": "admin", "X-Remote-Group": "system:masters"}
    status, answer, _ = stranger.call("GET", maps.path, headers=forged)
    assert (status, "system:anonymous" in answer["message"]) == (403, True)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (409, "Conflict"),
        (422, "Invalid"),
        (429, "TooManyRequests"),
        (500, "InternalError"),
        (503, "ServiceUnavailable"),
    ],
)
def test_it_answers_in_the_servers_place(
    local: LocalCluster, namespace: Namespace, maps: Maps, status: int, reason: str
) -> None:
    local.faults({"answers": [{"share": 1, "status": status, "methods": ["POST"]}]})
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "never"}}
    seen, answer, headers = maps.client.call("POST", maps.path, body)
    assert (seen, answer["kind"], answer["reason"]) == (status, "Status", reason)
    assert headers.get("Retry-After") == ("1" if status == 429 else None)
    assert maps.list() == 200
    assert names(namespace) == set()


def test_shares_of_the_calls_are_hit(local: LocalCluster, maps: Maps) -> None:
    answers = [{"share": 0.2, "status": 500}, {"share": 0.25, "status": 429}]
    local.faults({"seed": 7, "answers": answers})
    seen = collections.Counter(maps.list() for _ in range(200))
    assert 20 <= seen[500] <= 60
    assert 20 <= seen[429] <= 60
    assert seen[200] == 200 - seen[500] - seen[429]


def test_a_fault_can_come_a_number_of_times_for_one_client_and_path(
    local: LocalCluster, maps: Maps, tmp_path: Path
) -> None:
    answer = {"share": 1, "status": 500, "times": 2, "path": "/configmaps$"}
    local.faults({"userAgent": "^plain$", "answers": [answer]})
    other = PlainClient(local.faults_kubeconfig, tmp_path, agent="other")
    assert other.call("GET", maps.path)[0] == 200
    assert maps.client.call("GET", "/api/v1/nodes")[0] == 200
    assert [maps.list() for _ in range(3)] == [500, 500, 200]


def test_no_answer_comes(local: LocalCluster, namespace: Namespace, maps: Maps) -> None:
    local.faults({"answers": [{"share": 1, "status": 0, "delaySeconds": 30}]})
    with pytest.raises(TimeoutError):
        maps.create("never", timeout=1)
    local.faults({"answers": [{"share": 1, "status": 0, "delaySeconds": 0.2}]})
    with pytest.raises(Broken):
        maps.create("never", timeout=5)
    assert names(namespace) == set()


def test_an_answer_is_lost_after_the_call_went_through(local: LocalCluster, namespace: Namespace, maps: Maps) -> None:
    local.faults({"answers": [{"share": 1, "lost": True, "methods": ["POST"]}]})
    with pytest.raises(Broken):
        maps.create("made")
    assert names(namespace) == {"made"}


@pytest.mark.parametrize("status", [410, 500, 0])
def test_a_watch_is_ended(local: LocalCluster, maps: Maps, status: int) -> None:
    assert maps.create("seen") == 201
    local.faults({"watch": {"afterSeconds": 1, "status": status}})
    began = time.monotonic()
    events = list(maps.client.watch(maps.path))
    assert 0.9 < time.monotonic() - began < 5
    added = [event["object"]["metadata"]["name"] for event in events if event["type"] == "ADDED"]
    errors = [event["object"]["code"] for event in events if event["type"] == "ERROR"]
    assert ("seen" in added, errors) == (True, [status] if status else [])


def test_an_open_watch_is_ended_too(local: LocalCluster, maps: Maps) -> None:
    events = maps.client.watch(maps.path)
    assert next(events)["type"] == "ADDED"
    local.faults({"watch": {"status": 410}})
    assert [event["type"] for event in events][-1:] == ["ERROR"]


def test_a_watch_stalls(local: LocalCluster, namespace: Namespace, maps: Maps) -> None:
    events = maps.client.watch(maps.path, timeout=3)
    assert next(events)["type"] == "ADDED"
    local.faults({"watch": {"stall": True}})
    time.sleep(0.3)
    assert maps.create("unseen") == 201
    with pytest.raises(TimeoutError):
        next(events)
    assert names(namespace) == {"unseen"}


def test_it_goes_away_for_a_while(local: LocalCluster, maps: Maps) -> None:
    events = maps.client.watch(maps.path)
    assert next(events)["type"] == "ADDED"
    local.faults({"goneSeconds": 3})
    with contextlib.suppress(*Broken):  # it ends one way or the other
        list(events)
    with pytest.raises(Broken):
        maps.list()
    assert eventually(lambda: came_back(maps), timeout=10) == 200


def came_back(maps: Maps) -> int:
    try:
        return maps.list()
    except Broken:
        return 0


def test_it_is_gone_until_told_otherwise(local: LocalCluster, maps: Maps) -> None:
    local.faults({"gone": True})
    for _ in range(3):
        with pytest.raises(Broken):
            maps.list()
    local.faults(None)
    assert maps.list() == 200


@pytest.mark.parametrize(("count", "lost"), [(0, False), (2, False), (2, True)])
def test_exactly_k_writes_pass(local: LocalCluster, namespace: Namespace, maps: Maps, count: int, lost: bool) -> None:
    rules: Object = {"writes": {"count": count, "lost": lost}}
    local.faults(rules)
    answered = 0
    for number in range(count + 2):
        try:
            maps.create(f"w{number}")
            answered += 1
        except Broken:
            continue
    assert names(namespace) == {f"w{number}" for number in range(count)}
    assert answered == count - lost
    report = local.fault_report()
    assert report["gone"]
    assert [write["status"] for write in report["writes"]] == [201] * count


def test_rules_that_make_no_sense_are_refused(local: LocalCluster, maps: Maps) -> None:
    for rules in ({"sahre": 1}, {"answers": [{"share": 2}]}, {"userAgent": "("}):
        with pytest.raises(Exception, match="error:"):
            local.faults(rules)
