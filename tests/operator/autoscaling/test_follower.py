"""What is kept of one service."""

from __future__ import annotations

import pytest

from thranite_operator.autoscaling.follower import Follower
from thranite_operator.pods import Pod
from thranite_operator.spec import parse_service


@pytest.mark.parametrize(("samples", "moments"), [(10, 3), (9, 3), (2, 1)])
def test_the_past_is_bounded_by_samples_of_pods(samples: int, moments: int) -> None:
    meta = {"name": "x", "namespace": "n", "uid": "u", "generation": 1}
    spec = {"model": {"uri": "file:///m"}, "replicas": 3, "autoscaling": {"maxReplicas": 8}}
    service = parse_service({"metadata": meta, "spec": spec})
    assert service.spec.autoscaling is not None
    follower = Follower(service, service.spec.autoscaling, now=0.0)
    pods = [Pod(f"p{i}", f"p{i}", "engine", "t", "Pending", deleting=False, ready=False, created="") for i in range(3)]
    follower.observe(service, service.spec.autoscaling, pods)
    follower.samples_kept = samples
    for second in range(20):
        follower.decide(float(second), float(second))
    assert [moment.time for moment in follower.moments] == [float(second) for second in range(20 - moments, 20)]
