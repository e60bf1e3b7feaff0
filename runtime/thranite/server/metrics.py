"""Every metric family, from one snapshot. Nothing is counted here: values are the engine's, of the scrape's moment.

Our own names carry the label model_name. The same values appear under vLLM's names (labels model_name and engine), so
that dashboards, KEDA recipes and Gateway API endpoint pickers made for it work unchanged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry

from thranite.engine.stats import EngineStats
from thranite.request import FinishReason
from thranite.server.metric_histograms import own_histograms, vllm_histograms

REJECTION_REASONS = ("queue_full", "draining", "asleep", "invalid")
VLLM_FINISH_REASONS = (FinishReason.STOP, FinishReason.LENGTH, FinishReason.ABORT)
ENGINE = "0"  # vLLM's label of the engine within a server; there is one


@dataclass(frozen=True, slots=True)
class MetricsSnapshot:
    """All that the families are made of. `stats_age_seconds`: 0 unless the engine could not answer in time."""

    model_name: str
    stats: EngineStats = field(default_factory=EngineStats)
    stats_age_seconds: float = 0.0
    draining: bool = False
    startup_seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DownloadSnapshot:
    """How far `thranite download` is."""

    model_name: str
    bytes_done: int = 0
    bytes_total: int = 0
    files_done: int = 0
    files_total: int = 0


def engine_families(snapshot: MetricsSnapshot) -> Iterator[Metric]:
    yield from _own_gauges(snapshot)
    yield from _own_counters(snapshot)
    yield from _vllm_gauges(snapshot)
    yield from _vllm_counters(snapshot)
    histograms = dict(snapshot.stats.histograms)
    yield from own_histograms(snapshot.model_name, histograms)
    yield from vllm_histograms({"model_name": snapshot.model_name, "engine": ENGINE}, histograms)


def all_families(snapshots: Iterable[MetricsSnapshot]) -> Iterable[Metric]:
    """Those of several engines, each family once."""
    families: dict[str, Metric] = {}
    for snapshot in snapshots:
        for family in engine_families(snapshot):
            if family.name in families:
                families[family.name].samples += family.samples
            else:
                families[family.name] = family
    return families.values()


def download_families(snapshot: DownloadSnapshot) -> Iterator[Metric]:
    model = snapshot.model_name
    yield _gauge("thranite_download_bytes", "Bytes of the model that are downloaded", model, snapshot.bytes_done)
    yield _gauge("thranite_download_total_bytes", "Bytes of the model", model, snapshot.bytes_total)
    yield _gauge("thranite_download_files", "Files of the model that are whole", model, snapshot.files_done)
    yield _gauge("thranite_download_total_files", "Files of the model", model, snapshot.files_total)


def render(families: Iterable[Metric], names: Collection[str] = (), accept: str = "") -> tuple[bytes, str]:
    """The text and its content type, in the format that `accept` (the HTTP header) asks for.

    `names` keeps only the families that have such a name, or a sample of such a name.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families([family for family in families if _wanted(family, names)]))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Families(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _wanted(family: Metric, names: Collection[str]) -> bool:
    return not names or family.name in names or any(sample.name in names for sample in family.samples)


def _own_gauges(snapshot: MetricsSnapshot) -> Iterator[Metric]:
    stats, model = snapshot.stats, snapshot.model_name
    for name, text, value in (
        ("requests_waiting", "Requests accepted and not running", stats.requests_waiting),
        ("requests_running", "Requests of which a sequence runs", stats.requests_running),
        ("kv_cache_usage_ratio", "KV blocks held by unfinished requests, of all", stats.kv_cache_usage_ratio),
        ("waiting_tokens", "Prompt tokens still to compute", stats.waiting_tokens),
        ("oldest_waiting_seconds", "Age of the request that waits longest", stats.oldest_waiting_seconds),
        ("concurrency_limit", "Sequences that may run at once", stats.concurrency_limit),
        ("draining", "1 while the server drains", int(snapshot.draining)),
        ("sleeping", "1 while the model sleeps, or is about to", int(stats.sleeping)),
        ("kv_blocks", "KV blocks of the cache", stats.kv_blocks),
        ("stats_age_seconds", "Age of these figures; above 0 while one step is long", snapshot.stats_age_seconds),
    ):
        yield _gauge(f"thranite_{name}", text, model, value)
    startup = GaugeMetricFamily(
        "thranite_startup_seconds", "Time of a stage of startup", labels=["model_name", "stage"]
    )
    for stage, seconds in snapshot.startup_seconds.items():
        startup.add_metric([model, stage], seconds)
    yield startup


def _own_counters(snapshot: MetricsSnapshot) -> Iterator[Metric]:
    stats, model = snapshot.stats, snapshot.model_name
    for name, text, value in (
        ("requests_received", "Requests that reached the engine", stats.requests_received_total),
        ("preemptions", "Sequences put back to the queue for lack of KV blocks", stats.preemptions_total),
        ("prompt_tokens", "Prompt tokens of accepted requests", stats.prompt_tokens_total),
        ("cached_prompt_tokens", "Prompt tokens found in the prefix cache", stats.cached_prompt_tokens_total),
        ("generation_tokens", "Tokens generated", stats.generation_tokens_total),
        ("prefix_cache_queries", "Tokens looked up in the prefix cache", stats.prefix_cache_queries_total),
        ("prefix_cache_hits", "Tokens found in the prefix cache", stats.prefix_cache_hits_total),
        ("engine_steps", "Steps of the engine", stats.steps_total),
        ("engine_host_seconds", "Python's time in the step loop", stats.host_seconds_total),
    ):
        yield _counter(f"thranite_{name}", text, ["model_name"], {(model,): value})
    finished = dict.fromkeys((reason.value for reason in FinishReason), 0) | dict(stats.requests_finished_total)
    rejected = dict.fromkeys(REJECTION_REASONS, 0) | dict(stats.requests_rejected_total)
    labels = ["model_name", "reason"]
    yield _counter("thranite_requests_finished", "Requests ended, by reason", labels, _keyed(model, finished))
    yield _counter("thranite_requests_rejected", "Requests refused, by reason", labels, _keyed(model, rejected))


def _vllm_gauges(snapshot: MetricsSnapshot) -> Iterator[Metric]:
    stats, labels = snapshot.stats, ["model_name", "engine"]
    for name, text, value in (
        ("num_requests_waiting", "Number of requests waiting to be processed", stats.requests_waiting),
        ("num_requests_running", "Number of requests being processed", stats.requests_running),
        ("kv_cache_usage_perc", "KV-cache usage; 1 means all of it", stats.kv_cache_usage_ratio),
        ("gpu_cache_usage_perc", "The same under its older name", stats.kv_cache_usage_ratio),
    ):
        family = GaugeMetricFamily(f"vllm:{name}", text, labels=labels)
        family.add_metric([snapshot.model_name, ENGINE], value)
        yield family
    asleep = GaugeMetricFamily(
        "vllm:engine_sleep_state", "1 for the state the engine is in", labels=[*labels, "sleep_state"]
    )
    for state, holds in (("awake", not stats.sleeping), ("weights_offloaded", stats.sleeping), ("discard_all", False)):
        asleep.add_metric([snapshot.model_name, ENGINE, state], int(holds))
    yield asleep
    names = [*labels, "block_size", "num_gpu_blocks"]
    info = GaugeMetricFamily("vllm:cache_config_info", "The KV cache's shape, in labels", labels=names)
    info.add_metric([snapshot.model_name, ENGINE, str(stats.block_size), str(stats.kv_blocks)], 1)
    yield info


def _vllm_counters(snapshot: MetricsSnapshot) -> Iterator[Metric]:
    stats, key, labels = snapshot.stats, (snapshot.model_name, ENGINE), ["model_name", "engine"]
    for name, text, value in (
        ("prefix_cache_queries", "Tokens looked up in the prefix cache", stats.prefix_cache_queries_total),
        ("prefix_cache_hits", "Tokens found in the prefix cache", stats.prefix_cache_hits_total),
        ("num_preemptions", "Preemptions", stats.preemptions_total),
        ("prompt_tokens", "Prompt tokens", stats.prompt_tokens_total),
        ("prompt_tokens_cached", "Prompt tokens found in the prefix cache", stats.cached_prompt_tokens_total),
        ("generation_tokens", "Tokens generated", stats.generation_tokens_total),
    ):
        yield _counter(f"vllm:{name}", text, labels, {key: value})
    finished: dict[tuple[str, ...], float] = {
        (*key, reason.value): stats.requests_finished_total.get(reason.value, 0) for reason in VLLM_FINISH_REASONS
    }
    yield _counter("vllm:request_success", "Requests finished, by reason", [*labels, "finished_reason"], finished)


def _gauge(name: str, text: str, model: str, value: float) -> Metric:
    family = GaugeMetricFamily(name, text, labels=["model_name"])
    family.add_metric([model], value)
    return family


def _keyed(model: str, values: Mapping[str, float]) -> dict[tuple[str, ...], float]:
    return {(model, key): value for key, value in values.items()}


def _counter(name: str, text: str, labels: list[str], values: Mapping[tuple[str, ...], float]) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric(list(key), value)
    return family
