"""Metric families: names and labels are a contract with the operator and with dashboards made for vLLM."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from thranite.engine.histograms import BOUNDS, Histogram
from thranite.engine.stats import EngineStats
from thranite.errors import EngineDead
from thranite.server import metrics_source
from thranite.server.metric_histograms import NAMES
from thranite.server.metrics import (
    DownloadSnapshot,
    MetricsSnapshot,
    all_families,
    download_families,
    engine_families,
    render,
)
from thranite.server.metrics_source import MetricsSource

STATS = EngineStats(
    requests_waiting=3,
    requests_running=4,
    kv_cache_usage_ratio=0.25,
    waiting_tokens=500,
    oldest_waiting_seconds=1.5,
    kv_blocks=1000,
    kv_blocks_used=250,
    block_size=16,
    requests_received_total=20,
    requests_finished_total={"stop": 6, "length": 5, "timeout": 1},
    requests_rejected_total={"queue_full": 2},
    preemptions_total=7,
    prompt_tokens_total=900,
    cached_prompt_tokens_total=300,
    generation_tokens_total=800,
    prefix_cache_queries_total=901,
    prefix_cache_hits_total=301,
)
SNAPSHOT = MetricsSnapshot("m", STATS, draining=True, startup_seconds={"load weights": 2.5})

OURS = {
    "thranite_requests_waiting": 3,
    "thranite_requests_running": 4,
    "thranite_kv_cache_usage_ratio": 0.25,
    "thranite_waiting_tokens": 500,
    "thranite_oldest_waiting_seconds": 1.5,
    "thranite_draining": 1,
    "thranite_requests_received_total": 20,
}
VLLM = {
    "vllm:num_requests_waiting": 3,
    "vllm:num_requests_running": 4,
    "vllm:kv_cache_usage_perc": 0.25,
    "vllm:gpu_cache_usage_perc": 0.25,
    "vllm:prefix_cache_queries_total": 901,
    "vllm:prefix_cache_hits_total": 301,
    "vllm:num_preemptions_total": 7,
    "vllm:prompt_tokens_total": 900,
    "vllm:generation_tokens_total": 800,
}
HISTOGRAMS = {
    *(f"thranite_{names.own}" for names in NAMES.values()),
    *(f"vllm:{name}" for names in NAMES.values() for name in names.vllm),
}


def samples(snapshot: MetricsSnapshot, *names: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    body, content_type = render(engine_families(snapshot), names)
    assert content_type.startswith("text/plain; version=0.0.4")
    families: list[Metric] = list(text_string_to_metric_families(body.decode()))
    assert all(family.type in ("gauge", "counter", "histogram") and family.documentation for family in families)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_values_stand_under_our_names_and_vllms() -> None:
    found = samples(SNAPSHOT)
    for name, value in OURS.items():
        assert found[name, (("model_name", "m"),)] == value
    for name, value in VLLM.items():
        assert found[name, (("engine", "0"), ("model_name", "m"))] == value
    info = (("block_size", "16"), ("engine", "0"), ("model_name", "m"), ("num_gpu_blocks", "1000"))
    assert found["vllm:cache_config_info", info] == 1
    assert found["thranite_startup_seconds", (("model_name", "m"), ("stage", "load weights"))] == 2.5


def test_labelled_counters_are_complete_from_the_start() -> None:
    for snapshot, want in ((SNAPSHOT, {"stop": 6, "length": 5, "timeout": 1}), (MetricsSnapshot("m"), {})):
        found = samples(snapshot)
        for reason in ("stop", "length", "abort", "timeout", "error"):
            key = (("model_name", "m"), ("reason", reason))
            assert found["thranite_requests_finished_total", key] == want.get(reason, 0)
        for reason in ("stop", "length", "abort"):
            labels = (("engine", "0"), ("finished_reason", reason), ("model_name", "m"))
            assert found["vllm:request_success_total", labels] == want.get(reason, 0)
        for reason in ("queue_full", "draining", "invalid"):
            count = snapshot.stats.requests_rejected_total.get(reason, 0)
            assert found["thranite_requests_rejected_total", (("model_name", "m"), ("reason", reason))] == count


def test_every_family_is_there_with_zero_before_the_engine_is() -> None:
    empty = samples(MetricsSnapshot("m"))
    assert {name for name, _ in empty} >= {*OURS, *VLLM}
    ones = {(name, dict(labels).get("sleep_state")) for (name, labels), value in empty.items() if value != 0}
    assert ones == {("vllm:cache_config_info", None), ("vllm:engine_sleep_state", "awake")}
    assert {f"{name}_{part}" for name in HISTOGRAMS for part in ("bucket", "sum", "count")} <= {n for n, _ in empty}


def test_several_models_stand_in_the_same_families() -> None:
    asleep = replace(STATS, requests_waiting=8, sleeping=True)
    body, _ = render(all_families([SNAPSHOT, MetricsSnapshot("other", asleep)]))
    families = list(text_string_to_metric_families(body.decode()))
    assert len({family.name for family in families}) == len(families)
    alone = {family.name for family in engine_families(SNAPSHOT)}
    assert {family.name for family in families} == alone
    found = {
        (s.name, s.labels["model_name"], s.labels.get("sleep_state")): s.value for f in families for s in f.samples
    }
    for name in ("thranite_requests_waiting", "vllm:num_requests_waiting"):
        assert [found[name, model, None] for model in ("m", "other")] == [3, 8]
    assert [found["thranite_sleeping", model, None] for model in ("m", "other")] == [0, 1]
    for state, value in (("awake", 0), ("weights_offloaded", 1), ("discard_all", 0)):
        assert found["vllm:engine_sleep_state", "other", state] == value


def test_histograms_stand_under_both_names() -> None:
    histogram = Histogram(BOUNDS["first_token_seconds"])
    histogram.observe(0.03, 4)
    histogram.observe(1e6)
    stats = replace(STATS, histograms={**STATS.histograms, "first_token_seconds": histogram.snapshot()})
    found = samples(replace(SNAPSHOT, stats=stats))
    for name, labels in (
        ("thranite_time_to_first_token_seconds", (("model_name", "m"),)),
        ("vllm:time_to_first_token_seconds", (("engine", "0"), ("model_name", "m"))),
    ):
        for le, count in (("0.02", 0), ("0.04", 4), ("2560.0", 4), ("+Inf", 5)):
            assert found[f"{name}_bucket", tuple(sorted((*labels, ("le", le))))] == count
        assert found[f"{name}_count", labels] == 5
        assert found[f"{name}_sum", labels] == pytest.approx(1e6 + 0.12)


def test_filter_keeps_named_families_whole() -> None:
    names = ("thranite_requests_finished_total", "vllm:num_requests_waiting", "unknown")
    assert {name for name, _ in samples(SNAPSHOT, *names)} == set(names) - {"unknown"}
    assert len(samples(SNAPSHOT, *names)) == 6


def test_label_values_are_escaped_and_openmetrics_is_spoken() -> None:
    name = 'a"b\\c\nd'
    assert samples(MetricsSnapshot(name))["thranite_draining", (("model_name", name),)] == 0
    body, content_type = render(engine_families(SNAPSHOT), accept="application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_download_progress() -> None:
    body, _ = render(download_families(DownloadSnapshot("m", 5, 10, 1, 3)))
    found = {s.name: s.value for family in text_string_to_metric_families(body.decode()) for s in family.samples}
    assert found == {
        "thranite_download_bytes": 5,
        "thranite_download_total_bytes": 10,
        "thranite_download_files": 1,
        "thranite_download_total_files": 3,
    }


class _Client:
    """Answers with `stats`, or not at all, or fails."""

    def __init__(self) -> None:
        self.answer: EngineStats | EngineDead | None = STATS

    async def stats(self) -> EngineStats:
        if self.answer is None:
            await asyncio.sleep(3600)
        if isinstance(self.answer, EngineDead):
            raise self.answer
        return self.answer or EngineStats()


def test_a_busy_or_dead_engine_leaves_the_last_figures_and_their_age(monkeypatch: object) -> None:
    now = 100.0
    source, client = MetricsSource("m", lambda: now), _Client()
    source.first.client = client  # type: ignore[assignment]  # only stats() is asked for

    async def scrape() -> MetricsSnapshot:
        return (await source.snapshots())[0]

    assert asyncio.run(scrape()).stats_age_seconds == 0.0
    now = 107.0
    client.answer = EngineDead("gone")
    dead = asyncio.run(scrape())
    assert (dead.stats, dead.stats_age_seconds) == (STATS, 7.0)
    client.answer = None
    before, metrics_source.ANSWER_SECONDS = metrics_source.ANSWER_SECONDS, 0.05
    try:
        busy = asyncio.run(scrape())
    finally:
        metrics_source.ANSWER_SECONDS = before
    assert (busy.stats, busy.stats_age_seconds) == (STATS, 7.0)
