"""The engine's distributions as Prometheus histograms, under our names and vLLM's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from thranite.engine.histograms import BOUNDS, HistogramCounts


@dataclass(frozen=True, slots=True)
class HistogramNames:
    """`own` behind thranite_, each of `vllm` behind vllm:."""

    own: str
    text: str
    vllm: tuple[str, ...] = ()


# vLLM's iteration_tokens_total has no alias: a histogram of that name does not pass promtool's checks.
NAMES = {
    "first_token_seconds": HistogramNames(
        "time_to_first_token_seconds", "From arrival to the first token", ("time_to_first_token_seconds",)
    ),
    "inter_token_seconds": HistogramNames(
        "inter_token_latency_seconds",
        "Between two tokens of a sequence",
        ("inter_token_latency_seconds", "time_per_output_token_seconds"),
    ),
    "request_token_seconds": HistogramNames(
        "request_time_per_output_token_seconds",
        "Decode time of a request for each token after the first",
        ("request_time_per_output_token_seconds",),
    ),
    "request_seconds": HistogramNames(
        "e2e_request_latency_seconds", "From arrival to the end", ("e2e_request_latency_seconds",)
    ),
    "queue_seconds": HistogramNames(
        "request_queue_time_seconds", "From arrival to the first step", ("request_queue_time_seconds",)
    ),
    "prefill_seconds": HistogramNames(
        "request_prefill_time_seconds", "From the first step to the first token", ("request_prefill_time_seconds",)
    ),
    "decode_seconds": HistogramNames(
        "request_decode_time_seconds", "From the first token to the last", ("request_decode_time_seconds",)
    ),
    "inference_seconds": HistogramNames(
        "request_inference_time_seconds", "From the first step to the last token", ("request_inference_time_seconds",)
    ),
    "prompt_tokens": HistogramNames("request_prompt_tokens", "Prompt tokens of a request", ("request_prompt_tokens",)),
    "generation_tokens": HistogramNames(
        "request_generation_tokens", "Tokens generated for a request", ("request_generation_tokens",)
    ),
    "longest_generation_tokens": HistogramNames(
        "request_max_generation_tokens",
        "Tokens of a request's longest sample",
        ("request_max_num_generation_tokens",),
    ),
    "params_max_tokens": HistogramNames(
        "request_params_max_tokens", "max_tokens that requests ask for", ("request_params_max_tokens",)
    ),
    "params_n": HistogramNames("request_params_n", "n that requests ask for", ("request_params_n",)),
    "step_tokens": HistogramNames("iteration_tokens", "Tokens that a step computes"),
}


def own_histograms(model: str, histograms: dict[str, HistogramCounts]) -> Iterator[Metric]:
    for key, names in NAMES.items():
        yield _family(f"thranite_{names.own}", names.text, {"model_name": model}, key, histograms[key])


def vllm_histograms(labels: dict[str, str], histograms: dict[str, HistogramCounts]) -> Iterator[Metric]:
    for key, names in NAMES.items():
        for name in names.vllm:
            yield _family(f"vllm:{name}", names.text, labels, key, histograms[key])


def _family(name: str, text: str, labels: dict[str, str], key: str, counted: HistogramCounts) -> Metric:
    bounds = [*map(floatToGoString, BOUNDS[key]), "+Inf"]
    family = HistogramMetricFamily(name, text, labels=list(labels))
    buckets = list(zip(bounds, accumulate(map(float, counted.counts)), strict=True))
    family.add_metric(list(labels.values()), buckets, counted.total)
    return family
