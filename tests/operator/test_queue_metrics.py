"""The external metrics API of dev/: sums over replicas, and never a sum without one of them."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import pytest

from dev.queue_metrics import METRICS, VERSION, Refused, answer, ask
from tests.support.http_stub import http_stub
from thranite_operator.autoscaling.exposition import FAMILIES, Reading

BASE = f"/apis/{VERSION}"
LOADS = {("default", "llama"): [(3, 4), (0, 2)]}


class Runtime(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        text = "".join(f"{family} 3.0\n" for family in FAMILIES) if self.path.startswith("/metrics?") else ""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture
def port() -> Iterator[int]:
    with http_stub(Runtime) as port:
        yield port


def readings(namespace: str, service: str) -> list[Reading]:
    return [Reading(waiting, running, 0, 0, 0, 0) for waiting, running in LOADS[namespace, service]]


@pytest.mark.parametrize(("metric", "total"), list(zip(METRICS, ("3", "6", "9"), strict=True)))
def test_a_metric_is_the_sum_over_replicas(metric: str, total: str) -> None:
    body = answer(f"{BASE}/namespaces/default/{metric}?labelSelector=service%3Dllama", readings)
    (item,) = body["items"]
    assert (body["kind"], item["metricName"], item["value"]) == ("ExternalMetricValueList", metric, total)
    assert item["metricLabels"] == {"service": "llama"}


def test_discovery_names_the_metrics() -> None:
    body = answer(BASE, readings)
    assert body["groupVersion"] == VERSION
    assert [resource["name"] for resource in body["resources"]] == list(METRICS)


@pytest.mark.parametrize(
    ("target", "code", "message"),
    [
        ("/apis", 404, "there is no /apis"),
        (f"{BASE}/namespaces/default/queue?labelSelector=service%3Dllama", 404, "thranite_requests_waiting"),
        (f"{BASE}/namespaces/default/thranite_requests_waiting", 400, "service=NAME"),
        (f"{BASE}/namespaces/default/thranite_requests_waiting?labelSelector=service%21%3Dx", 400, "service!=x"),
    ],
)
def test_what_it_cannot_answer_it_says(target: str, code: int, message: str) -> None:
    with pytest.raises(Refused, match=message) as caught:
        answer(target, readings)
    assert caught.value.code == code


def test_a_replica_that_does_not_answer_fails_the_whole(port: int) -> None:
    assert [reading.waiting for reading in ask({"127.0.0.1"}, port)] == [3]
    with pytest.raises(Refused, match=f"127.0.0.2:{port} does not tell its load") as caught:
        ask({"127.0.0.1", "127.0.0.2"}, port)
    assert caught.value.code == 503
