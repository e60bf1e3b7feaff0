"""What a replica can do is learned from those that could not do more."""

from __future__ import annotations

import pytest

from thranite_operator.autoscaling.sample import Load, Phase, PodSample, Rates
from thranite_operator.autoscaling.service_rate import WEIGHT, learn, replicas_for, with_queue

QUEUED = frozenset({"a", "b"})


def pod(
    uid: str, waiting: float, finished: float, *, received: float = 1.0, rejected: float = 0.0, phase: Phase = "Ready"
) -> PodSample:
    rates = Rates(received=received, finished=finished, rejected=rejected, seconds=15.0)
    return PodSample(uid=uid, phase=phase, load=Load(waiting=waiting, running=16, kv_cache_usage=0.9, rates=rates))


def test_the_first_sample_is_taken_as_it_is() -> None:
    assert learn(None, [pod("a", waiting=3, finished=1.2)], QUEUED) == 1.2


def test_a_queue_that_never_ran_empty_counts_both_ways() -> None:
    """15 came in 15 s, and 20 wait: some of them have waited longer."""
    assert learn(2.0, [pod("a", waiting=20, finished=1.0)], QUEUED) == pytest.approx(2.0 - WEIGHT)
    assert learn(1.0, [pod("a", waiting=20, finished=2.0)], QUEUED) == pytest.approx(1.0 + WEIGHT)


def test_a_queue_that_may_have_been_empty_only_raises() -> None:
    assert learn(2.0, [pod("a", waiting=3, finished=1.0)], QUEUED) == 2.0
    assert learn(1.0, [pod("a", waiting=3, finished=2.0)], QUEUED) == pytest.approx(1.0 + WEIGHT)


def test_full_replicas_count_before_the_others() -> None:
    pods = [pod("a", waiting=20, finished=1.0), pod("b", waiting=1, finished=9.0)]
    assert learn(1.0, pods, QUEUED) == 1.0


def test_requests_turned_away_were_not_taken_in() -> None:
    assert learn(2.0, [pod("a", waiting=20, finished=1.0, received=5.0, rejected=4.0)], QUEUED) == pytest.approx(1.7)


@pytest.mark.parametrize(
    "one",
    [
        pod("c", waiting=20, finished=1.0),  # had no queue before
        pod("a", waiting=0, finished=1.0),  # has none now
        pod("a", waiting=20, finished=1.0, phase="Draining"),
        pod("a", waiting=20, finished=0.0),  # a stall says nothing of what it can do
        PodSample(uid="a", phase="Ready"),
    ],
)
def test_what_says_nothing_changes_nothing(one: PodSample) -> None:
    assert learn(1.5, [one], QUEUED) == 1.5
    assert learn(None, [one], QUEUED) is None


def test_a_backlog_is_worth_what_works_it_off_in_time() -> None:
    assert with_queue([pod("a", waiting=1, finished=1.0), pod("b", waiting=0, finished=1.0)]) == {"a"}
    assert replicas_for(arrival_rate=1.3, backlog=0, drain_seconds=60, service_rate=1.0) == 2
    assert replicas_for(arrival_rate=1.3, backlog=120, drain_seconds=60, service_rate=1.0) == 6
