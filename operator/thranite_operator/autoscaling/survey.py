"""The pods of one decision, counted and summed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from thranite_operator.autoscaling.sample import PodSample


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """`reporting` and `missing` are Ready pods. `arrival_rate`: requests per second of all of them, None while any is
    missing; one that was scraped once has just begun, and counts for nothing. `backlog`: requests that wait, and those
    turned away since the last scrape."""

    reporting: int
    missing: int
    pending: int
    unschedulable: int
    draining: int
    backlog: float
    kv_cache_usage: float
    arrival_rate: float | None


def survey(pods: Sequence[PodSample]) -> Survey:
    ready = [pod for pod in pods if pod.phase == "Ready"]
    loads = [pod.load for pod in ready if pod.load is not None]
    rates = [load.rates for load in loads if load.rates is not None]
    rejected = sum(rate.rejected * rate.seconds for rate in rates)
    return Survey(
        reporting=len(loads),
        missing=len(ready) - len(loads),
        pending=sum(pod.phase in ("Pending", "Unschedulable") for pod in pods),
        unschedulable=sum(pod.phase == "Unschedulable" for pod in pods),
        draining=sum(pod.phase == "Draining" for pod in pods),
        backlog=sum(load.waiting for load in loads) + rejected,
        kv_cache_usage=sum(load.kv_cache_usage for load in loads),
        arrival_rate=sum(rate.received for rate in rates) if rates and len(loads) == len(ready) else None,
    )
