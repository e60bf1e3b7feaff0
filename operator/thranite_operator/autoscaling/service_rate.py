"""What a replica can do, learned from those that have a queue; and how many replicas a backlog is worth.

A queue is a stock, not a flow. During a cold start it grows with time, and the plain ratio of queue to target asks for
more and more replicas, whatever the load is. The number that works the queue off in a set time does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from thranite_operator.autoscaling.sample import PodSample, Rates

UTILIZATION = 0.65  # of the service rate: above it first tokens come late (docs/autoscaling.md has the curve)
WEIGHT = 0.3  # of a new sample


def learn(known: float | None, pods: Sequence[PodSample], saturated: frozenset[str]) -> float | None:
    """From pods that had a queue at both ends of the interval. One that keeps more waiting than it took in never ran
    out of work. The others may have idled for a part: they do at least so much, and only raise what is known."""
    loads = [
        pod.load for pod in pods if pod.uid in saturated and pod.phase == "Ready" and pod.load and pod.load.waiting
    ]
    full = [load.rates.finished for load in loads if load.rates and load.waiting > _taken_in(load.rates)]
    sample = _mean(full or [load.rates.finished for load in loads if load.rates])
    if sample <= 0:
        return known
    if known is None:
        return sample
    return known + WEIGHT * (sample - known) if full or sample > known else known


def _taken_in(rates: Rates) -> float:
    return (rates.received - rates.rejected) * rates.seconds


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def with_queue(pods: Sequence[PodSample]) -> frozenset[str]:
    return frozenset(pod.uid for pod in pods if pod.phase == "Ready" and pod.load and pod.load.waiting > 0)


def replicas_for(arrival_rate: float, backlog: float, drain_seconds: float, service_rate: float) -> int:
    """That serve what arrives and work off the backlog in `drain_seconds`."""
    return math.ceil((arrival_rate + backlog / drain_seconds) / (UTILIZATION * service_rate))
