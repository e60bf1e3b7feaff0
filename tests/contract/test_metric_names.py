"""Metric names are a contract: with the operator, with dashboards and endpoint pickers made for vLLM, with promtool."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client.core import Metric

from thranite.engine.stats import EngineStats
from thranite.server.metrics import (
    DownloadSnapshot,
    MetricsSnapshot,
    download_families,
    engine_families,
    render,
)

GAUGES = {
    "thranite_requests_waiting", "thranite_requests_running", "thranite_kv_cache_usage_ratio",
    "thranite_waiting_tokens", "thranite_oldest_waiting_seconds", "thranite_draining", "thranite_kv_blocks",
    "thranite_stats_age_seconds", "vllm:num_requests_waiting", "vllm:num_requests_running",
    "vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "vllm:cache_config_info",
}  # fmt: skip
COUNTERS = {
    "thranite_requests_received", "thranite_requests_finished", "thranite_requests_rejected", "thranite_preemptions",
    "thranite_prompt_tokens", "thranite_cached_prompt_tokens", "thranite_generation_tokens",
    "thranite_prefix_cache_queries", "thranite_prefix_cache_hits", "vllm:prefix_cache_queries",
    "vllm:prefix_cache_hits", "vllm:num_preemptions", "vllm:prompt_tokens", "vllm:prompt_tokens_cached",
    "vllm:generation_tokens", "vllm:request_success",
}  # fmt: skip
BOTH = {
    "time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds",
    "request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds",
    "request_inference_time_seconds", "request_time_per_output_token_seconds", "request_prompt_tokens",
    "request_generation_tokens", "request_params_max_tokens", "request_params_n",
}  # fmt: skip
HISTOGRAMS = {f"{prefix}{name}" for name in BOTH for prefix in ("thranite_", "vllm:")} | {
    "thranite_iteration_tokens",
    "thranite_request_max_generation_tokens",
    "vllm:request_max_num_generation_tokens",
    "vllm:time_per_output_token_seconds",
}
ALL = [
    *engine_families(MetricsSnapshot("m", EngineStats(), startup_seconds={"load weights": 1.0})),
    *download_families(DownloadSnapshot("m")),
]
OUR_COLON = re.compile(r"^vllm:\S+ metric names should not contain ':'$")


def names(kind: str) -> set[str]:
    return {family.name for family in ALL if family.type == kind}


def test_names_and_kinds() -> None:
    assert names("gauge") >= GAUGES
    assert names("counter") >= COUNTERS
    assert names("histogram") == HISTOGRAMS


def test_bounds_hold_vllm_s() -> None:
    """Quantiles of its dashboards are as fine here."""
    bounds = {s.labels["le"] for f in ALL for s in f.samples if s.name == "vllm:time_to_first_token_seconds_bucket"}
    assert bounds >= {"0.001", "0.02", "0.06", "0.25", "0.75", "2.5", "7.5", "80.0", "2560.0", "+Inf"}
    bounds = {s.labels["le"] for f in ALL for s in f.samples if s.name == "vllm:inter_token_latency_seconds_bucket"}
    assert bounds >= {"0.01", "0.025", "0.05", "0.075", "0.15", "0.75", "2.5", "80.0", "+Inf"}


def test_our_names_keep_prometheus_rules() -> None:
    """What `promtool check metrics` looks at, for machines without it."""
    for family in ALL:
        _check(family)


def _check(family: Metric) -> None:
    name = family.name
    assert family.documentation
    assert re.fullmatch(r"thranite(_[a-z0-9]+)+|vllm:[a-z0-9]+(_[a-z0-9]+)*", name), name
    assert not name.endswith(("_total", "_count", "_sum", "_bucket")), name
    assert not re.search(r"_(ms|millis|min|minutes|kb|mb|gb|percent|counter|gauge|histogram)(_|$)", name), name


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool (Debian's package prometheus)")
def test_promtool() -> None:
    body, _ = render(ALL)
    done = subprocess.run(["promtool", "check", "metrics"], input=body, capture_output=True, check=False, timeout=30)
    complaints = done.stderr.decode().splitlines()
    assert complaints, "of vLLM's names it has something to say"
    assert [line for line in complaints if not OUR_COLON.match(line)] == []


def test_the_table_in_the_docs_is_whole() -> None:
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    missing = [family.name for family in ALL if family.name not in text and family.name.split(":")[-1] not in text]
    assert missing == []
