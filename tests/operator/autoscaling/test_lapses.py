"""Metrics that were away for a while, a clock that is set back, a node that never answers again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from thranite_operator.autoscaling.decision import Decision, decide
from thranite_operator.autoscaling.exposition import Reading
from thranite_operator.autoscaling.follower import Follower
from thranite_operator.autoscaling.reasons import Reason
from thranite_operator.autoscaling.sample import Load, PodSample, Rates
from thranite_operator.autoscaling.scraper import Scraped
from thranite_operator.autoscaling.spec import AutoscalingSpec, Behavior, ScaleDown
from thranite_operator.autoscaling.state import AutoscalerState
from thranite_operator.pods import Pod
from thranite_operator.spec import parse_service

INTERVAL = 15.0
BEGIN = 1_800_000_000.0


def sample(
    uid: int,
    *,
    rate: float = 1.0,
    finished: float = 1.0,
    waiting: float = 0,
    cache: float = 0.3,
    silent: bool = False,
) -> PodSample:
    rates = Rates(received=rate, finished=finished, rejected=0, seconds=INTERVAL)
    load = Load(waiting=waiting, running=3, kv_cache_usage=cache, rates=rates)
    return PodSample(uid=f"p{uid}", phase="Ready", load=None if silent else load)


def sizes(spec: AutoscalingSpec, start_seconds: float, outage: range) -> list[int]:
    """Of ten replicas with 9 requests per second among them, seven of ten silent in the rounds of `outage`."""
    state, current, found = AutoscalerState(service_rate=1.5), 10, []
    for turn in range(160):
        silent = [turn in outage and uid >= 0.3 * current for uid in range(current)]
        pods = tuple(sample(uid, rate=9.0 / current, silent=silent[uid]) for uid in range(current))
        state = replace(state, start_seconds=start_seconds)
        decision = decide(spec, state, pods, current, BEGIN + turn * INTERVAL)
        state, current = decision.state, decision.desired
        found.append(current)
    return found


@pytest.mark.parametrize("start_seconds", [120.0, 300.0, 600.0])
@pytest.mark.parametrize("rounds", [4, 8, 16, 20, 28])
@pytest.mark.parametrize("window", [0, 300])
def test_arrivals_that_were_not_seen_are_no_rise_once_they_are(start_seconds: float, rounds: int, window: int) -> None:
    behavior = Behavior(scale_down=ScaleDown(stabilization_window_seconds=window))
    spec = AutoscalingSpec(max_replicas=40, behavior=behavior)
    assert set(sizes(spec, start_seconds, range(60, 60 + rounds))) == {10}


def test_pods_that_come_one_by_one_do_not_hide_what_arrives() -> None:
    """60 requests per second for replicas that finish 1.5 each, of which one more is ready at each look."""
    state, current, found = AutoscalerState(service_rate=1.5), 16, []
    for turn in range(20):
        ready = min(8 + turn, current)
        pods = [sample(uid, rate=60 / ready, finished=1.5, waiting=20, cache=0.9) for uid in range(ready)]
        assert pods[-1].load is not None
        pods[-1] = replace(pods[-1], load=replace(pods[-1].load, rates=None))
        pods += [PodSample(uid=f"q{uid}", phase="Pending") for uid in range(current - ready)]
        decision = decide(AutoscalingSpec(max_replicas=200), state, tuple(pods), current, BEGIN + turn * INTERVAL)
        state, current = decision.state, decision.desired
        found.append(decision)
    assert Reason.WAITING_FOR_PENDING not in {decision.reason for decision in found}
    assert found[8].desired >= 60


@pytest.mark.parametrize("step", [0.0, -60.0, -240.0, -270.0])
def test_a_clock_set_back_takes_no_replica_that_was_asked_for_lately(step: float) -> None:
    """Ten minutes of little, two of much, then little again: for 300 s nothing is taken away."""
    spec, state, time = AutoscalingSpec(max_replicas=10), AutoscalerState(), BEGIN
    for waiting in [0.0] * 40 + [9.0] * 8:
        pods = [sample(uid, rate=0.1, finished=5.0, waiting=waiting, cache=0.01) for uid in range(2)]
        state, time = replace(decide(spec, state, tuple(pods), 2, time).state, rush_until=0.0), time + INTERVAL
    pods = [sample(uid, rate=0.1, finished=5.0, cache=0.01) for uid in range(2)]
    for turn in range(18):
        decision = decide(spec, state, tuple(pods), 2, time + step + turn * INTERVAL)
        assert (decision.recommended, decision.desired) == (1, 2), turn
        state = decision.state


@pytest.mark.parametrize("seconds", [-3600.0, -86400.0 * 365, -1.0, 0.0])
def test_a_clock_set_back_holds_nothing_for_longer_than_the_windows(seconds: float) -> None:
    spec, state, time = AutoscalingSpec(max_replicas=10), AutoscalerState(), BEGIN
    for turn in range(40):
        time = BEGIN + turn * INTERVAL
        state = decide(spec, state, (sample(0),), 1, time).state
    time += seconds + INTERVAL
    assert decide(spec, state, (sample(0, waiting=7, cache=0.95),), 1, time).desired > 1
    busy = (sample(0, waiting=90), sample(1, waiting=90))
    state = decide(spec, state, busy, 2, time - seconds).state
    rounds = []
    for turn in range(1, 40):
        decision = decide(spec, state, (sample(0), sample(1)), 2, time + turn * INTERVAL)
        state = decision.state
        rounds.append(decision)
    after = next(index for index, decision in enumerate(rounds) if decision.desired == 1)
    assert after * INTERVAL <= spec.behavior.scale_down.stabilization_window_seconds + INTERVAL


def test_a_pace_holds_where_the_clock_was_set_back() -> None:
    spec = AutoscalingSpec(max_replicas=100)
    crowd = tuple(sample(uid, waiting=500) for uid in range(2))
    first = decide(spec, AutoscalerState(), crowd, 2, BEGIN)
    assert first.desired == 4
    again = decide(spec, first.state, crowd, first.desired, BEGIN - 3600)
    assert (again.desired, again.reason) == (4, Reason.SCALE_UP_LIMIT)


def test_a_pod_that_never_ends_does_not_keep_the_others() -> None:
    """Its node is gone, and with it who would say that it has ended."""
    due = "2026-01-01T00:05:00Z"
    assert _with_ending_pod(due, seconds=-1).reason is Reason.DRAINING
    assert _with_ending_pod(due, seconds=59).reason is Reason.DRAINING
    assert _with_ending_pod(due, seconds=61).desired == 2


def _with_ending_pod(due: str, seconds: float) -> Decision:
    """The decision `seconds` after the end of the grace period, of three idle replicas beside the pod."""
    meta = {"name": "x", "namespace": "n", "uid": "u", "generation": 1}
    rules = {"scaleDown": {"stabilizationWindowSeconds": 0}}
    body = {"model": {"uri": "file:///m"}, "replicas": 3, "autoscaling": {"maxReplicas": 8, "behavior": rules}}
    service = parse_service({"metadata": meta, "spec": body})
    assert service.spec.autoscaling is not None
    now = 1767225900.0 + seconds  # of `due`
    follower = Follower(service, service.spec.autoscaling, now)
    ready = Pod("", "", "engine", "t", "Running", ready=True, created="", address="10.0.0.1")
    pods = [replace(ready, name=f"p{index}", uid=f"p{index}") for index in range(3)]
    pods.append(replace(ready, name="lost", uid="lost", ready=False, end_due=due))
    follower.observe(service, service.spec.autoscaling, pods)
    for clock in (0.0, 15.0):
        follower.remember([Scraped(f"p{index}", clock, Reading(0, 0, 0.01, 0, 0, 0)) for index in range(3)])
    return follower.decide(now, 15.0)
