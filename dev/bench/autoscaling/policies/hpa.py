"""HorizontalPodAutoscaler: kubernetes/kubernetes, pkg/controller/podautoscaler/replica_calculator.go and horizontal.go.

Sync every 15 s, tolerance 0.1; up at once, at most max(4 pods, 100 %) in 15 s; down to the most of the last 300 s, at
most 100 % in 15 s. A pod that runs and has no metric yet counts as missing, one without a node as unready.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from autoscaling.plant import View
from autoscaling.replica import Scrape

SYNC_SECONDS = 15.0
TOLERANCE = 0.1
Gauge = Callable[[Scrape], float]


def queue(scrape: Scrape) -> float:
    return scrape.requests_waiting


def kv_cache(scrape: Scrape) -> float:
    return scrape.kv_cache_usage_ratio


def pods_metric(view: View, gauge: Gauge, target: float) -> int | None:
    """`calcPlainMetricReplicas`: the size that a metric of type Pods asks for; None if no pod reports."""
    values = [gauge(pod.scrape) for pod in view.pods if pod.scrape is not None]
    if not values:
        return None
    missing = sum(pod.scrape is None and pod.phase in ("Ready", "Pending") for pod in view.pods)
    unready = sum(pod.phase == "Unschedulable" for pod in view.pods)
    ratio = sum(values) / len(values) / target
    if not missing and not (unready and ratio > 1):
        return view.current if abs(ratio - 1) <= TOLERANCE else math.ceil(ratio * len(values))
    if ratio < 1:
        values += [target] * missing
    elif ratio > 1:
        values += [0.0] * (missing + unready)
    return _recomputed(values, target, ratio, view.current)


def _recomputed(values: Sequence[float], target: float, before: float, current: int) -> int:
    """Nothing changes where the filled-in values bring the ratio inside the tolerance or to the other side."""
    ratio = sum(values) / len(values) / target
    if abs(ratio - 1) <= TOLERANCE or (before < 1 < ratio) or (before > 1 > ratio):
        return current
    size = math.ceil(ratio * len(values))
    return current if (ratio < 1 and size > current) or (ratio > 1 and size < current) else size


def external_metric(total: float, target: float, current: int) -> int:
    """`GetExternalPerPodMetricReplicas`: a metric of type External with an average value."""
    ratio = total / (target * current)
    return current if abs(ratio - 1) <= TOLERANCE else math.ceil(total / target)


class Behavior:
    """`spec.behavior`: the windows of recommendations and the rate policies, both of their defaults unless given."""

    def __init__(
        self,
        up_window: float = 0.0,
        down_window: float = 300.0,
        pods_up: int = 4,
        percent_up: int = 100,
        period: float = 15.0,
    ) -> None:
        self._up_window, self._down_window = up_window, down_window
        self._pods_up, self._percent_up, self._period = pods_up, percent_up, period
        self._recommended: list[tuple[float, int]] = []
        self._grown: list[tuple[float, int]] = []

    def follow(self, now: float, current: int, recommended: int) -> int:
        if not self._recommended:
            self._recommended.append((now - 1e-3, current))
        self._recommended = [(t, n) for t, n in self._recommended if t > now - max(self._up_window, self._down_window)]
        ups = [n for t, n in self._recommended if t > now - self._up_window]
        downs = [n for t, n in self._recommended if t > now - self._down_window]
        self._recommended.append((now, recommended))
        size = min(max(current, min([recommended, *ups])), max([recommended, *downs]))
        if size > current:
            size = min(size, self._limit(now, current))
            self._grown.append((now, size - current))
        return size

    def _limit(self, now: float, current: int) -> int:
        self._grown = [(t, n) for t, n in self._grown if t > now - self._period]
        before = current - sum(n for _, n in self._grown)
        return max(current, before + self._pods_up, math.ceil(before * (100 + self._percent_up) / 100))


class Hpa:
    """`metrics`: gauge and target of each. The most that one asks for; no way down while one is unknown."""

    interval = SYNC_SECONDS

    def __init__(self, name: str, metrics: Sequence[tuple[Gauge, float]]) -> None:
        self.name, self._metrics, self._behavior = name, metrics, Behavior()

    def decide(self, view: View) -> int:
        asks = [pods_metric(view, gauge, target) for gauge, target in self._metrics]
        known = [ask for ask in asks if ask is not None]
        if not known or (len(known) < len(asks) and max(known) < view.current):
            return view.current
        return self._behavior.follow(view.now, view.current, max(known))
