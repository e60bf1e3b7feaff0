"""AIBrix's APA and KPA: vllm-project/aibrix, pkg/controller/podautoscaler/ (algorithm/apa.go, algorithm/kpa.go,
autoscaler.go, metrics/client.go, podautoscaler_controller.go), metric and target of samples/autoscaling/{apa,kpa}.yaml.

Every 10 s the mean over the pods that report goes into a window of 180 s (KPA: and one of 60 s); nothing new where none
reports. At most twice or half the size at once. A recommendation to shrink becomes the least one of the last 300 s
(`stabilizeRecommendation`), to grow itself. Pods that start count as idle on the way up, as on target on the way down.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Literal

from autoscaling.plant import View
from autoscaling.policies.hpa import Gauge

STABLE_SECONDS, PANIC_SECONDS, DOWN_SECONDS = 180.0, 60.0, 300.0
TOLERANCE, RATE, PANIC_THRESHOLD = 0.1, 2.0, 2.0
Algorithm = Literal["APA", "KPA"]


class AIBrix:
    """`summed`: KPA on the sum over pods, as Knative has it, where AIBrix's client keeps the mean of the pods."""

    interval = 10.0

    def __init__(self, name: str, algorithm: Algorithm, gauge: Gauge, target: float, *, summed: bool = False) -> None:
        self.name, self._algorithm, self._gauge, self._target = name, algorithm, gauge, target
        self._summed = summed
        self._values: deque[tuple[float, float]] = deque()
        self._recommended: deque[tuple[float, int]] = deque()

    def decide(self, view: View) -> int:
        values = [self._gauge(pod.scrape) for pod in view.pods if pod.scrape is not None]
        if values:
            self._values.append((view.now, sum(values) / (1 if self._summed else len(values))))
        while self._values and self._values[0][0] <= view.now - STABLE_SECONDS:
            self._values.popleft()
        if not self._values:
            return view.current
        value, size = self._apa(view.current) if self._algorithm == "APA" else self._kpa(view.current)
        size = max(size, 1)
        ready = min(sum(pod.phase == "Ready" for pod in view.pods), view.current)
        if ready < view.current and size != view.current and not self._summed:
            size = self._guarded(value, size, ready, view.current)
        return self._stabilized(view.now, view.current, size)

    def _mean(self, seconds: float) -> float:
        newest = self._values[-1][0]
        return _mean([value for time, value in self._values if time > newest - seconds])

    def _apa(self, current: int) -> tuple[float, int]:
        value = self._mean(STABLE_SECONDS)
        ratio = value / self._target
        if ratio > 1 + TOLERANCE:
            return value, min(math.ceil(current * ratio), math.ceil(RATE * current))
        if ratio < 1 - TOLERANCE:
            return value, max(math.ceil(current * ratio), math.floor(current / RATE))
        return value, current

    def _kpa(self, current: int) -> tuple[float, int]:
        stable, panicked = self._mean(STABLE_SECONDS), self._mean(PANIC_SECONDS)
        panic = stable <= 0 or panicked / stable > PANIC_THRESHOLD

        def pods(value: float) -> int:
            least, most = math.floor(current / RATE), max(1, math.ceil(RATE * current))
            return min(max(math.ceil(value / self._target), least), most)

        return (panicked if panic else stable), max(pods(stable), pods(panicked) if panic else 0)

    def _guarded(self, value: float, size: int, ready: int, current: int) -> int:
        """`applyPendingReplicaGuard`."""
        factor = current if self._algorithm == "APA" else 1
        if size > current:
            adjusted = math.ceil(factor * value * ready / current / self._target)
            return min(max(adjusted, current), size)
        adjusted = math.ceil((value * ready + self._target * (current - ready)) / self._target)
        return max(min(adjusted, current), size)

    def _stabilized(self, now: float, current: int, size: int) -> int:
        self._recommended.append((now, size))
        while self._recommended[0][0] <= now - DOWN_SECONDS:
            self._recommended.popleft()
        return min(n for _, n in self._recommended) if size < current else size


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
