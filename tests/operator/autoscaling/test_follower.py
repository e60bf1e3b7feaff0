"""What is kept of one service."""

from __future__ import annotations

import pytest

from thranite_operator.autoscaling.exposition import Reading
from thranite_operator.autoscaling.follower import Follower
from thranite_operator.autoscaling.scraper import Scraped
from thranite_operator.pods import Pod
from thranite_operator.spec import parse_service


def following(*, ready: bool, replicas: int = 3) -> Follower:
    meta = {"name": "x", "namespace": "n", "uid": "u", "generation": 1}
    spec = {"model": {"uri": "file:///m"}, "replicas": replicas, "autoscaling": {"maxReplicas": 8}}
    service = parse_service({"metadata": meta, "spec": spec})
    assert service.spec.autoscaling is not None
    follower = Follower(service, service.spec.autoscaling, now=0.0)
    phase = "Running" if ready else "Pending"
    pods = [
        Pod(f"p{i}", f"p{i}", "engine", "t", phase, ready=ready, created="", address=f"10.0.0.{i}")
        for i in range(replicas)
    ]
    follower.observe(service, service.spec.autoscaling, pods)
    return follower


@pytest.mark.parametrize(("samples", "moments"), [(10, 3), (9, 3), (2, 1)])
def test_the_past_is_bounded_by_samples_of_pods(samples: int, moments: int) -> None:
    follower = following(ready=False)
    follower.samples_kept = samples
    for second in range(20):
        follower.decide(float(second), float(second))
    assert [moment.time for moment in follower.moments] == [float(second) for second in range(20 - moments, 20)]


def test_who_did_not_answer_is_asked_with_others_that_did_not() -> None:
    follower = following(ready=True)
    assert [target.failed for target in follower.targets()] == [False] * 3
    reading = Reading(0, 0, 0, 0, 0, 0)
    follower.remember([Scraped("p0", 1.0, reading), Scraped("p1", 1.0, None, "TimeoutError"), Scraped("p2", 1.0, None)])
    assert [target.failed for target in follower.targets()] == [False, True, True]
    follower.remember([Scraped(f"p{i}", 2.0, reading) for i in range(3)])
    assert [target.failed for target in follower.targets()] == [False] * 3
