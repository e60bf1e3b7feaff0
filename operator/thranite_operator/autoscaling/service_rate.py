"""What a replica can do, learned from those that have a queue; and how many replicas a backlog is worth.

A queue is a stock, not a flow. During a cold start it grows with time, and the plain ratio of queue to target asks for
more and more replicas, whatever the load is. The number that works the queue off in a set time does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from thranite_operator.autoscaling.sample import PodSample

UTILIZATION = 0.85  # of the service rate: near all of it queues grow without bound
WEIGHT = 0.3  # of a new sample


def learn(known: float | None, pods: Sequence[PodSample], saturated: frozenset[str]) -> float | None:
    """From pods that had a queue at both ends of the interval; any others may have been idle for a part of it."""
    rates = [
        pod.load.rates.finished
        for pod in pods
        if pod.uid in saturated and pod.phase == "Ready" and pod.load and pod.load.waiting and pod.load.rates
    ]
    if not rates:
        return known
    sample = sum(rates) / len(rates)
    if sample <= 0:
        return known
    return sample if known is None else known + WEIGHT * (sample - known)


def with_queue(pods: Sequence[PodSample]) -> frozenset[str]:
    return frozenset(pod.uid for pod in pods if pod.phase == "Ready" and pod.load and pod.load.waiting > 0)


def replicas_for(arrival_rate: float, backlog: float, drain_seconds: float, service_rate: float) -> int:
    """That serve what arrives and work off the backlog in `drain_seconds`."""
    return math.ceil((arrival_rate + backlog / drain_seconds) / (UTILIZATION * service_rate))
