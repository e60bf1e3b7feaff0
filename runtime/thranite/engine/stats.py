"""The engine's counters and gauges as one frozen snapshot: the only source of every metric about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from thranite.engine.histograms import HistogramCounts, empty_histograms


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Gauges are of this moment; the fields that end in `_total` only grow.

    Requests count once whatever their `n`: waiting while none of their sequences runs. `kv_cache_usage_ratio`: blocks
    held by unfinished requests ÷ all blocks; kept prefix blocks without an owner count as free.
    """

    requests_waiting: int = 0
    requests_running: int = 0
    kv_cache_usage_ratio: float = 0.0
    concurrency_limit: int = 0  # sequences that may run at once
    sleeping: bool = False  # or about to sleep: new requests are refused
    waiting_tokens: int = 0  # prompt tokens still to compute
    oldest_waiting_seconds: float = 0.0
    kv_blocks: int = 0
    kv_blocks_used: int = 0
    block_size: int = 0
    requests_received_total: int = 0
    requests_finished_total: Mapping[str, int] = field(default_factory=dict)  # by FinishReason value
    requests_rejected_total: Mapping[str, int] = field(default_factory=dict)  # by Rejected.reason, or "invalid"
    preemptions_total: int = 0
    prompt_tokens_total: int = 0
    cached_prompt_tokens_total: int = 0
    generation_tokens_total: int = 0
    prefix_cache_queries_total: int = 0  # tokens looked up
    prefix_cache_hits_total: int = 0  # tokens found
    steps_total: int = 0
    host_seconds_total: float = 0.0  # Python's time in the step loop, waiting for the device left out
    histograms: Mapping[str, HistogramCounts] = field(default_factory=empty_histograms)  # by name in BOUNDS
