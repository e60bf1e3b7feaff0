"""Why the wish is what it is: one word for status, conditions, events and the label of a counter."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    # What asks.
    QUEUE_DEPTH = "QueueDepth"
    KV_CACHE_UTILIZATION = "KVCacheUtilization"
    REQUEST_RATE = "RequestRate"
    STEADY = "Steady"
    # What holds.
    WAITING_FOR_PENDING = "WaitingForPending"
    SERVICE_RATE = "ServiceRate"
    INSUFFICIENT_GPU = "InsufficientGPU"
    METRIC_MISSING = "MetricMissing"
    METRICS_UNAVAILABLE = "MetricsUnavailable"
    NO_READY_PODS = "NoReadyPods"
    STABILIZED = "Stabilized"
    RUSH = "Rush"
    DRAINING = "Draining"
    SCALE_UP_LIMIT = "ScaleUpLimit"
    SCALE_DOWN_LIMIT = "ScaleDownLimit"
    # What is set.
    TOO_FEW_REPLICAS = "TooFewReplicas"
    TOO_MANY_REPLICAS = "TooManyReplicas"
    SCHEDULE = "Schedule"
    SCALING_DISABLED = "ScalingDisabled"
