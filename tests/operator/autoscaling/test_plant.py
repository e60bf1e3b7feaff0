"""The simulated replicas behave as the recorded engine did, and pods come, go and report as in a cluster."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from statistics import median

import pytest
from autoscaling.plant import Plant, View
from autoscaling.replica import Replica, Request
from autoscaling.service import RECORDED, recorded
from autoscaling.trace_set import ALL, HELD_OUT, TUNE, UNIT, steps, trace
from autoscaling.traces import Outage

SERVICE = recorded()


@dataclass
class Fixed:
    """Asks for a size from a moment on, and remembers what it saw."""

    wishes: dict[float, int]
    name: str = "fixed"
    interval: float = 5.0
    views: list[View] = field(default_factory=list)

    def decide(self, view: View) -> int:
        self.views.append(view)
        return next((wish for time, wish in reversed(self.wishes.items()) if view.now >= time), view.current)


def test_a_replica_takes_as_long_as_the_engine_did() -> None:
    """Of the same requests at the same times: the run's length and the first tokens."""
    for run in json.loads(RECORDED.read_text())["open_loop"]:
        replica, requests = Replica(SERVICE, 0.0), []
        for arrival, prompt, output, _ in run["requests"]:
            requests.append(Request(arrival, prompt, output))
            replica.offer(requests[-1])
        assert replica.scrape(run["seconds"] * 0.95).requests_running > 0
        scrape = replica.scrape(run["seconds"] * 1.05)
        assert scrape.requests_running == scrape.requests_waiting == 0
        firsts = [request.first_token - request.arrival for request in requests]
        assert median(firsts) == pytest.approx(median(row[3] for row in run["requests"]), rel=0.25)


def test_the_unit_of_the_traces_is_what_a_full_replica_finishes() -> None:
    replica, flood = Replica(SERVICE, 0.0), trace("step", 9, "tune", steps([(0, 3.0)]))
    for request in flood.requests():
        replica.offer(request)
    scrape = replica.scrape(flood.seconds)
    assert scrape.requests_finished_total / flood.seconds == pytest.approx(UNIT, rel=0.03)
    assert scrape.requests_waiting > SERVICE.max_waiting - 5
    assert scrape.requests_rejected_total > 0
    total = scrape.requests_finished_total + scrape.requests_rejected_total
    assert scrape.requests_received_total == total + scrape.requests_waiting + scrape.requests_running


def test_a_full_cache_sends_the_youngest_back() -> None:
    """Three of 40 + 60 tokens in a cache of 220: the third starts, and is computed again when the others have grown."""
    service = replace(SERVICE, kv_tokens=220)
    replica = Replica(service, 0.0)
    requests = [Request(0.0, 40, 60) for _ in range(3)]
    for request in requests:
        replica.offer(request)
    seen = [replica.scrape(0.1 * tick) for tick in range(1, 1000)]
    assert seen[10].requests_running == 3
    assert max(scrape.requests_waiting for scrape in seen[10:]) == 1
    assert max(scrape.kv_cache_usage_ratio for scrape in seen) <= 1
    assert seen[-1].requests_finished_total == 3
    assert replica.scrape(100.0).kv_cache_usage_ratio == 0


def test_pods_start_wait_for_gpus_and_drain() -> None:
    policy = Fixed({0: 1, 60: 4, 600: 1})
    busy = trace("step", 8, "tune", steps([(0, 0.6), (300, 2.0)]), hours=0.25, gpus=3)
    outcome = Plant(busy, policy, SERVICE, cold_start=120.0).run()
    phases = {view.now: sorted(pod.phase for pod in view.pods) for view in policy.views}
    assert phases[75.0] == ["Pending", "Pending", "Ready", "Unschedulable"]
    assert phases[300.0] == ["Ready", "Ready", "Ready", "Unschedulable"]
    assert "Draining" in phases[605.0]
    assert phases[885.0] == ["Ready"]
    starts = [pod.start_seconds for view in policy.views for pod in view.pods if pod.start_seconds]
    assert min(starts) >= 120 * 0.9
    assert outcome.changes == 2
    assert outcome.flips == 1
    assert outcome.replica_hours == pytest.approx((900 + 2 * 545) / 3600, rel=0.05)


def test_no_metrics_come_in_an_outage() -> None:
    policy = Fixed({0: 2})
    dark = replace(trace("step", 7, "tune", steps([(0, 0.5)]), hours=0.1), outages=(Outage(120.0, 240.0, 1.0),))
    Plant(dark, policy, SERVICE, cold_start=1.0).run()
    reporting = {view.now: sum(pod.scrape is not None for pod in view.pods) for view in policy.views}
    assert all(count == 0 for now, count in reporting.items() if 120 <= now < 240)
    assert sum(reporting.values()) > 10


def test_both_halves_hold_the_same_kinds_and_no_trace_twice() -> None:
    assert [item.kind for item in TUNE] == [item.kind for item in HELD_OUT]
    assert len({item.name for item in ALL}) == len(ALL)
    assert {item.half for item in TUNE} == {"tune"}
    assert {item.half for item in HELD_OUT} == {"held-out"}
    assert len({tuple(item.rate(second) for second in range(0, 3600, 60)) for item in ALL}) == len(ALL)


def test_the_same_run_twice_is_the_same() -> None:
    again = [Plant(TUNE[0], Fixed({0: 1, 900: 4}), SERVICE, 30.0).run() for _ in range(2)]
    assert again[0] == again[1]
