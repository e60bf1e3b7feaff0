"""Replicas behind a Service, and what an autoscaler sees of them and does to them.

A pod takes a GPU if one is free, starts for a set time, then receives requests; the Service picks a ready pod at random
for each, as kube-proxy does. A pod taken away receives none, ends its streams and gives its GPU back.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, Protocol

from autoscaling.replica import Replica, Request, Scrape
from autoscaling.service import Service
from autoscaling.traces import Trace

FIRST_TOKEN_SECONDS = 2.0  # a later first token, or none, is a miss
START_SPREAD = 0.1  # starts take their time plus or minus this share
SCRAPE_LOSS = 0.01  # of single scrapes, at any time
END_SECONDS = 600.0  # after the last arrival, in which first tokens may still come

Phase = Literal["Ready", "Pending", "Unschedulable", "Draining"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PodView:
    """`scrape` is None where it failed or the pod is not ready. `start_seconds`: from placement to readiness."""

    uid: str
    phase: Phase
    scrape: Scrape | None = None
    start_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """`current`: the wish, as in `.spec.replicas`. `in_flight`: requests that a proxy in front would count."""

    now: float
    current: int
    pods: tuple[PodView, ...]
    in_flight: int


class Policy(Protocol):
    """An autoscaler. `interval`: seconds between two decisions."""

    name: str
    interval: float

    def decide(self, view: View) -> int: ...


@dataclass(slots=True)
class Pod:
    """`placed` and `gone` bound the time it holds a GPU; `ready` is None until it is placed."""

    uid: str
    replica: Replica | None = None
    placed: float | None = None
    ready: float | None = None
    gone: float | None = None
    leaving: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """`misses`: first tokens late or never. `samples`: (time, wish, ready, queue) at decisions."""

    requests: int
    misses: int
    replica_hours: float
    changes: int
    flips: int  # changes against the direction of the one before
    samples: tuple[tuple[float, int, int, int], ...] = field(repr=False)


class Plant:
    """One run of one policy against one trace."""

    def __init__(self, trace: Trace, policy: Policy, service: Service, cold_start: float) -> None:
        self._trace, self._policy, self._service, self._cold_start = trace, policy, service, cold_start
        self._balance = random.Random(f"{trace.name}/balance")
        self._luck = random.Random(f"{trace.name}/scrapes")
        self._starts = random.Random(f"{trace.name}/starts")
        self._pods: list[Pod] = []
        self._wish, self._count = 0, 0
        self._retired = 0.0  # replica seconds of pods that are gone
        self._changes: list[int] = []
        self._samples: list[tuple[float, int, int, int]] = []

    def run(self) -> Outcome:
        self._resize(self._trace.replicas, 0.0, warm=True)
        requests = self._trace.requests()
        due = self._policy.interval
        ready = self._endpoints(0.0)
        for request in requests:
            while due <= request.arrival:
                self._control(due)
                due += self._policy.interval
            ready = self._endpoints(request.arrival)
            if ready:
                self._balance.choice(ready).offer(request)
        return self._outcome(requests, self._trace.seconds)

    def _outcome(self, requests: Sequence[Request], end: float) -> Outcome:
        for pod in self._pods:
            if pod.replica is not None:
                pod.replica.advance(end + END_SECONDS)
        held = sum(end - pod.placed for pod in self._pods if pod.placed is not None and pod.placed < end)
        late = sum(request.first_token - request.arrival > FIRST_TOKEN_SECONDS for request in requests)
        signs = [1 if delta > 0 else -1 for delta in self._changes]
        return Outcome(
            requests=len(requests),
            misses=late,
            replica_hours=(held + self._retired) / 3600,
            changes=len(signs),
            flips=sum(one != other for one, other in pairwise(signs)),
            samples=tuple(self._samples),
        )

    # --- pods

    def _endpoints(self, now: float) -> list[Replica]:
        return [
            pod.replica
            for pod in self._pods
            if pod.replica is not None and not pod.leaving and pod.ready is not None and pod.ready <= now
        ]

    def _resize(self, wish: int, now: float, *, warm: bool = False) -> None:
        staying = [pod for pod in self._pods if not pod.leaving]
        if wish != self._wish and not warm:
            self._changes.append(wish - self._wish)
        self._wish = wish
        for _ in range(wish - len(staying)):
            self._count += 1
            self._pods.append(Pod(f"pod-{self._count}"))
        if wish < len(staying):
            for pod in sorted(staying, key=lambda item: self._rank(item, now))[: len(staying) - wish]:
                self._take_away(pod, now)
        self._settle(now, 0.0 if warm else self._cold_start)

    def _rank(self, pod: Pod, now: float) -> tuple[int, int]:
        """Who goes first: those without a node, then those that start, then the least loaded."""
        if pod.replica is None or pod.ready is None:
            return 0, 0
        return (1, 0) if pod.ready > now else (2, pod.replica.load)

    def _take_away(self, pod: Pod, now: float) -> None:
        pod.leaving = True
        if pod.replica is None or pod.ready is None or pod.ready > now:
            self._remove(pod, now)
        else:
            pod.replica.draining = True

    def _remove(self, pod: Pod, now: float) -> None:
        self._pods.remove(pod)
        if pod.placed is not None:
            self._retired += max(min(now, self._trace.seconds) - pod.placed, 0.0)

    def _settle(self, now: float, cold_start: float) -> None:
        """Pods that have drained go; pods that wait for a GPU get one if it is free."""
        for pod in [item for item in self._pods if item.leaving]:
            if pod.replica is not None and not pod.replica.load:
                self._remove(pod, now)
        free = self._trace.gpus - sum(pod.placed is not None for pod in self._pods)
        for pod in [item for item in self._pods if item.placed is None][: max(free, 0)]:
            spread = 1 + self._starts.uniform(-START_SPREAD, START_SPREAD)
            pod.placed, pod.ready = now, now + cold_start * spread
            pod.replica = Replica(self._service, pod.ready)

    # --- the autoscaler's side

    def _control(self, now: float) -> None:
        for pod in self._pods:
            if pod.replica is not None:
                pod.replica.advance(now)
        self._settle(now, self._cold_start)
        view = View(
            now=now,
            current=self._wish,
            pods=tuple(self._look(pod, now) for pod in self._pods),
            in_flight=sum(pod.replica.load for pod in self._pods if pod.replica is not None),
        )
        wish = min(max(self._policy.decide(view), 1), self._trace.max_replicas)
        ready = [pod for pod in view.pods if pod.phase == "Ready"]
        queue = sum(pod.replica.scrape(now).requests_waiting for pod in self._pods if pod.replica is not None)
        self._samples.append((now, wish, len(ready), queue))
        if wish != self._wish:
            self._resize(wish, now)

    def _look(self, pod: Pod, now: float) -> PodView:
        lucky = self._luck.random() >= SCRAPE_LOSS and not self._trace.lost(pod.uid, now)
        if pod.placed is None or pod.replica is None or pod.ready is None:
            return PodView(uid=pod.uid, phase="Unschedulable")
        if pod.leaving:
            return PodView(uid=pod.uid, phase="Draining")
        if pod.ready > now:
            return PodView(uid=pod.uid, phase="Pending")
        scrape = pod.replica.scrape(now) if lucky else None
        return PodView(uid=pod.uid, phase="Ready", scrape=scrape, start_seconds=pod.ready - pod.placed)
