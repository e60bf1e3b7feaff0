"""What the operator says of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class OperatorMetrics:
    """`depth`, `writes`: asked at each scrape."""

    def __init__(self, depth: Callable[[], int], writes: Callable[[], Mapping[tuple[str, str], int]]) -> None:
        self._registry = CollectorRegistry()
        self.reconciles = Counter(
            "thranite_operator_reconciles", "Reconciles by outcome", ["outcome"], registry=self._registry
        )
        self.seconds = Histogram(
            "thranite_operator_reconcile_seconds", "Time of a reconcile", buckets=BUCKETS, registry=self._registry
        )
        for outcome in ("success", "error"):
            self.reconciles.labels(outcome)
        self._registry.register(_Live(depth, writes))
        ProcessCollector(registry=self._registry)

    def add(self, collector: Collector) -> None:
        self._registry.register(collector)

    def render(self) -> tuple[bytes, str]:
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


class _Live(Collector):
    def __init__(self, depth: Callable[[], int], writes: Callable[[], Mapping[tuple[str, str], int]]) -> None:
        self._depth, self._writes = depth, writes

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("thranite_operator_queue_depth", "Keys that wait", value=self._depth())
        writes = CounterMetricFamily("thranite_operator_api_writes", "Calls that may change", labels=["verb", "kind"])
        for (verb, kind), count in self._writes().items():
            writes.add_metric([verb, kind], count)
        yield writes
