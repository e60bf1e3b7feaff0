"""KEDA's prometheus scaler under a HorizontalPodAutoscaler: kedacore/keda, pkg/scalers/prometheus_scaler.go.

The query is the sum of `num_requests_waiting`; its threshold is that of vllm-project/production-stack,
helm/templates/scaledobject-vllm.yaml. `ignoreNullValues` is true by default: an empty result counts as 0.
"""

from __future__ import annotations

from autoscaling.plant import View
from autoscaling.policies.hpa import SYNC_SECONDS, Behavior, external_metric

THRESHOLD = 5.0


class Keda:
    name = "KEDA"
    interval = SYNC_SECONDS

    def __init__(self) -> None:
        self._behavior = Behavior()

    def decide(self, view: View) -> int:
        total = sum(pod.scrape.requests_waiting for pod in view.pods if pod.scrape is not None)
        return self._behavior.follow(view.now, view.current, external_metric(total, THRESHOLD, view.current))
