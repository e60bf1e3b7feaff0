"""llm-d's workload variant autoscaler: llm-d/llm-d-workload-variant-autoscaler, internal/saturation/analyzer.go and
internal/engines/saturation/engine.go, the thresholds of charts/workload-variant-autoscaler/values.yaml.

Every 30 s, on the most of the last minute: one more when spare KV cache or queue of the replicas that are not saturated
is short, one fewer when the rest would have enough; nothing while replicas start or do not report. A
HorizontalPodAutoscaler carries it out.
"""

from __future__ import annotations

from collections import deque

from autoscaling.plant import View
from autoscaling.policies.hpa import SYNC_SECONDS, Behavior, external_metric

KV_THRESHOLD, QUEUE_THRESHOLD = 0.80, 5.0
KV_SPARE, QUEUE_SPARE = 0.10, 3.0
LEAST_TO_SHRINK = 2  # replicas that are not saturated
ANALYSIS_SECONDS, LOOK_BACK_SECONDS = 30.0, 60.0


class Wva:
    interval = SYNC_SECONDS

    def __init__(self, name: str, behavior: Behavior) -> None:
        self.name, self._behavior = name, behavior
        self._seen: dict[str, deque[tuple[float, float, float]]] = {}
        self._target: int | None = None
        self._due = 0.0

    def decide(self, view: View) -> int:
        self._collect(view)
        if view.now >= self._due:
            self._due = view.now + ANALYSIS_SECONDS
            self._target = self._analyse(view)
        target = view.current if self._target is None else self._target
        return self._behavior.follow(view.now, view.current, external_metric(target, 1.0, view.current))

    def _collect(self, view: View) -> None:
        for pod in view.pods:
            if pod.scrape is not None:
                kept = self._seen.setdefault(pod.uid, deque())
                kept.append((view.now, pod.scrape.kv_cache_usage_ratio, pod.scrape.requests_waiting))
        for kept in self._seen.values():
            while kept and kept[0][0] <= view.now - LOOK_BACK_SECONDS:
                kept.popleft()

    def _analyse(self, view: View) -> int:
        present = {pod.uid for pod in view.pods if pod.phase == "Ready"}
        peaks = [
            (max(kv for _, kv, _ in kept), max(queue for _, _, queue in kept))
            for uid, kept in self._seen.items()
            if kept and uid in present
        ]
        if self._target not in (None, view.current) and self._target is not None:
            return self._target
        if not peaks or len(peaks) != view.current:
            return view.current
        free = [(kv, queue) for kv, queue in peaks if kv < KV_THRESHOLD and queue < QUEUE_THRESHOLD]
        spare_kv = sum(KV_THRESHOLD - kv for kv, _ in free) / len(free) if free else 0.0
        spare_queue = sum(QUEUE_THRESHOLD - queue for _, queue in free) / len(free) if free else 0.0
        if spare_kv < KV_SPARE or spare_queue < QUEUE_SPARE:
            return view.current + 1
        return view.current - 1 if _can_shrink(len(free), spare_kv, spare_queue) else view.current


def _can_shrink(free: int, spare_kv: float, spare_queue: float) -> bool:
    if free < LEAST_TO_SHRINK:
        return False
    more = free / (free - 1)
    kv, queue = (KV_THRESHOLD - spare_kv) * more, (QUEUE_THRESHOLD - spare_queue) * more
    return KV_THRESHOLD - kv >= KV_SPARE and QUEUE_THRESHOLD - queue >= QUEUE_SPARE
