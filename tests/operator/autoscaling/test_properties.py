"""What holds for every decision. THRANITE_TEST_STATES raises the number of random states (make test-autoscaling)."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from random import Random

import pytest

from tests.support.autoscaling_cases import DecisionCase, random_case
from thranite_operator.autoscaling.decision import Decision
from thranite_operator.autoscaling.reasons import Reason
from thranite_operator.autoscaling.sample import PodSample
from thranite_operator.autoscaling.state import AutoscalerState

STATES = int(os.environ.get("THRANITE_TEST_STATES", "6000"))
LIMITS = (Reason.TOO_MANY_REPLICAS, Reason.SCALING_DISABLED)


@pytest.fixture(scope="module")
def cases() -> list[tuple[DecisionCase, Decision]]:
    rng = Random(9)
    return [(case, case.decide()) for case in (random_case(rng) for _ in range(STATES))]


def test_same_input_same_output(cases: list[tuple[DecisionCase, Decision]]) -> None:
    for case, decision in cases:
        assert case.decide() == decision
        assert replace(case, pods=case.pods[::-1]).decide().desired == decision.desired


def test_bounds(cases: list[tuple[DecisionCase, Decision]]) -> None:
    for case, decision in cases:
        if case.current == 0:
            assert decision.desired == 0
        else:
            assert case.spec.min_replicas <= decision.desired <= case.spec.max_replicas
        assert decision.recommended >= min(case.current, 1)
        assert decision.message


def test_more_queue_never_asks_for_fewer(cases: list[tuple[DecisionCase, Decision]]) -> None:
    rng = Random(10)
    for case, decision in cases:
        assert case.with_pods(tuple(_busier(pod, rng) for pod in case.pods)).decide().desired >= decision.desired, case


def _busier(pod: PodSample, rng: Random) -> PodSample:
    if pod.load is None or rng.random() < 0.3:
        return pod
    return replace(pod, load=replace(pod.load, waiting=pod.load.waiting + rng.choice((1, 10, 500))))


def test_lost_metrics_never_scale_down(cases: list[tuple[DecisionCase, Decision]]) -> None:
    rng = Random(11)
    for case, _ in cases:
        if not any(pod.phase == "Ready" for pod in case.pods):
            continue
        for share in (0.3, 1.0):
            lost = case.with_pods(tuple(_lose(pod, share, rng) for pod in case.pods))
            if any(pod.phase == "Ready" and pod.load is None for pod in lost.pods):
                assert lost.decide().desired >= min(case.current, case.spec.max_replicas), lost


def _lose(pod: PodSample, share: float, rng: Random) -> PodSample:
    return replace(pod, load=None) if rng.random() < share else pod


def test_all_metrics_lost_changes_nothing(cases: list[tuple[DecisionCase, Decision]]) -> None:
    for case, _ in cases:
        spec = replace(case.spec, schedules=())
        dark = replace(case, spec=spec, pods=tuple(replace(pod, load=None) for pod in case.pods))
        expected = min(max(case.current, spec.min_replicas), spec.max_replicas) if case.current else 0
        assert dark.decide().desired == expected


def test_a_pending_pod_never_raises_the_ask(cases: list[tuple[DecisionCase, Decision]]) -> None:
    for case, decision in cases:
        for phase in ("Pending", "Unschedulable"):
            more = case.with_pods((*case.pods, PodSample(uid="new", phase=phase)))
            assert more.decide().desired <= max(decision.desired, case.current), more
            assert more.decide().recommended <= decision.recommended, more


def test_an_empty_state_never_scales_down(cases: list[tuple[DecisionCase, Decision]]) -> None:
    """An operator that has just started knows no more than this, and what status told it."""
    for case, _ in cases:
        if case.spec.behavior.scale_down.stabilization_window_seconds == 0:
            continue
        known = replace(AutoscalerState(), service_rate=case.state.service_rate, changes=case.state.changes)
        assert replace(case, state=known).decide().desired >= min(case.current, case.spec.max_replicas)


def test_every_reason_is_met(cases: list[tuple[DecisionCase, Decision]]) -> None:
    met = Counter(decision.reason for _, decision in cases)
    assert set(met) == set(Reason), met
