"""The autoscaler's metrics: what its followers see now, asked for at each scrape of the operator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from thranite_operator.autoscaling.reasons import Reason

if TYPE_CHECKING:
    from thranite_operator.autoscaling.autoscaler import Autoscaler

SERVICE = ["namespace", "name"]


class DecisionCounts:
    """Decisions by service and reason."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], Counter[Reason]] = {}

    def add(self, key: tuple[str, str], reason: Reason) -> None:
        self._counts.setdefault(key, Counter())[reason] += 1

    def forget(self, key: tuple[str, str]) -> None:
        self._counts.pop(key, None)

    def __iter__(self) -> Iterator[tuple[str, str, Reason, int]]:
        for (namespace, name), counts in self._counts.items():
            for reason, count in counts.items():
                yield namespace, name, reason, count


class LiveMetrics(Collector):
    def __init__(self, autoscaler: Autoscaler) -> None:
        self._autoscaler = autoscaler

    def collect(self) -> Iterator[Metric]:
        yield from self._sizes()
        yield from self._pods()
        decisions = CounterMetricFamily(
            "thranite_operator_autoscaler_decisions", "Decisions by reason", labels=[*SERVICE, "reason"]
        )
        for namespace, name, reason, count in self._autoscaler.counts:
            decisions.add_metric([namespace, name, reason], count)
        yield decisions
        scraper = self._autoscaler.scraper
        yield CounterMetricFamily("thranite_operator_scrapes", "Scrapes of pods", value=scraper.scrapes)
        yield CounterMetricFamily("thranite_operator_scrape_errors", "Scrapes that failed", value=scraper.errors)

    def _sizes(self) -> Iterator[Metric]:
        kinds = ("desired", "recommended")
        sizes = {
            kind: GaugeMetricFamily(
                f"thranite_operator_autoscaler_{kind}_replicas", f"Replicas {kind} by the last decision", labels=SERVICE
            )
            for kind in kinds
        }
        values = GaugeMetricFamily(
            "thranite_operator_autoscaler_metric_value", "Of each replica on average", labels=[*SERVICE, "metric"]
        )
        targets = GaugeMetricFamily(
            "thranite_operator_autoscaler_metric_target", "At which there are enough", labels=[*SERVICE, "metric"]
        )
        for key, follower in self._autoscaler.followers():
            if follower.last is None:
                continue
            sizes["desired"].add_metric(key, follower.last.desired)
            sizes["recommended"].add_metric(key, follower.last.recommended)
            for metric in follower.last.metrics:
                targets.add_metric([*key, metric.reason], metric.target)
                if metric.average is not None:
                    values.add_metric([*key, metric.reason], metric.average)
        yield from (*sizes.values(), values, targets)

    def _pods(self) -> Iterator[Metric]:
        pods = GaugeMetricFamily(
            "thranite_operator_autoscaler_pods", "Ready pods by whether they report", labels=[*SERVICE, "state"]
        )
        ages = GaugeMetricFamily(
            "thranite_operator_autoscaler_oldest_scrape_seconds", "Age of the oldest answer in use", labels=SERVICE
        )
        clock = self._autoscaler.scraper.now()
        for key, follower in self._autoscaler.followers():
            if follower.last is None or not follower.last.metrics:
                continue
            metric = follower.last.metrics[0]
            pods.add_metric([*key, "reporting"], metric.reporting)
            pods.add_metric([*key, "missing"], metric.missing)
            ages.add_metric(key, max(follower.ages(clock), default=0.0))
        yield from (pods, ages)
