"""Random cases of an autoscaling decision, drawn so that every branch is met."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from thranite_operator.autoscaling.decision import Decision, decide
from thranite_operator.autoscaling.sample import Load, Phase, PodSample, Rates
from thranite_operator.autoscaling.spec import AutoscalingSpec, Behavior, ScaleDown, ScaleUp, Schedule
from thranite_operator.autoscaling.state import Arrival, AutoscalerState, Change, Recommendation

NOW = 1_800_000_000.0
PHASES: tuple[Phase, ...] = ("Ready", "Ready", "Ready", "Ready", "Pending", "Unschedulable", "Draining")


@dataclass(frozen=True, slots=True)
class DecisionCase:
    spec: AutoscalingSpec
    state: AutoscalerState
    pods: tuple[PodSample, ...]
    current: int
    now: float = NOW

    def decide(self) -> Decision:
        return decide(self.spec, self.state, self.pods, self.current, self.now)

    def with_pods(self, pods: tuple[PodSample, ...]) -> DecisionCase:
        return replace(self, pods=pods)


def random_case(rng: Random) -> DecisionCase:
    current = rng.choice((0, 1, 1, 2, 3, 4, 7, 12, 30))
    pods = tuple(random_pod(rng, f"p{index}") for index in range(rng.randint(0, max(current, 1) + 2)))
    if rng.random() < 0.5:  # most decisions are made with all pods well
        pods = tuple(replace(pod, phase="Ready", load=pod.load or random_load(rng)) for pod in pods)
    return DecisionCase(random_spec(rng), random_state(rng, current, pods), pods, current)


def random_pod(rng: Random, uid: str) -> PodSample:
    phase = rng.choice(PHASES)
    reports = phase == "Ready" and rng.random() < 0.85
    return PodSample(uid=uid, phase=phase, load=random_load(rng) if reports else None)


def random_load(rng: Random) -> Load:
    received = rng.choice((0.0, rng.uniform(0, 1), rng.uniform(0, 40)))
    rejected = rng.choice((0.0, 0.0, received * rng.random()))
    rates = Rates(received=received, finished=rng.choice((0.0, rng.uniform(0, 10))), rejected=rejected, seconds=15.0)
    return Load(
        waiting=rng.choice((0, 0, rng.randint(0, 8), rng.randint(0, 400))),
        running=rng.randint(0, 64),
        kv_cache_usage=rng.choice((0.0, rng.random(), 0.75)),
        rates=rates if rng.random() < 0.9 else None,
    )


def random_spec(rng: Random) -> AutoscalingSpec:
    least = rng.randint(1, 4)
    windows = (0, 60, 300)
    return AutoscalingSpec(
        min_replicas=least,
        max_replicas=least + rng.choice((0, 3, 20, 100)),
        target_queue_depth=rng.choice((1, 4, 30)),
        target_kv_cache_utilization_percent=rng.choice((50, 75, 95)),
        drain_target_seconds=rng.choice((5, 60, 600)),
        predictive=rng.random() < 0.5,
        behavior=Behavior(
            scale_up=ScaleUp(stabilization_window_seconds=rng.choice(windows), pods=rng.choice((0, 1, 4))),
            scale_down=ScaleDown(stabilization_window_seconds=rng.choice(windows), percent=rng.choice((0, 50, 100))),
        ),
        schedules=(Schedule(name="always", start="0 * * * *", duration_seconds=7200, min_replicas=3),)
        if rng.random() < 0.02
        else (),
    )


def random_state(rng: Random, current: int, pods: tuple[PodSample, ...]) -> AutoscalerState:
    def ago() -> float:
        return NOW - rng.uniform(1, 400)

    around = range(max(current - 4, 1), current + 5)
    count = rng.choice((0, 1, 5))
    slope = rng.uniform(-0.02, 0.05)
    return AutoscalerState(
        recommendations=tuple(Recommendation(ago(), rng.choice(around)) for _ in range(count)),
        changes=tuple(Change(ago(), rng.choice((-2, -1, 1, 2, 5))) for _ in range(rng.choice((0, 0, 1, 3)))),
        arrivals=tuple(
            Arrival(NOW - 15.0 * back, max(5 - slope * 15 * back + rng.gauss(0, 0.5), 0))
            for back in range(rng.choice((0, 4, 20)), 0, -1)
        ),
        saturated=frozenset(pod.uid for pod in pods if rng.random() < 0.5),
        rush_until=rng.choice((0.0, NOW + rng.uniform(-60, 60))),
        service_rate=rng.choice((None, rng.uniform(0.05, 8))),
        start_seconds=rng.choice((None, 30.0, 300.0)),
    )
