"""The offline benchmark, end to end on the null device and with a stand-in for the engine."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from thranite.bench import offline
from thranite.bench.figures import Figures, option_ratios
from thranite.bench.workloads import WORKLOADS, Workload
from thranite.errors import ConfigError, ThraniteError

TINY = Workload("tiny", "output tok/s", 3, lambda size: (size.randint(4, 9), size.randint(2, 5)))


class CountingLLM:
    """Answers with as many tokens as were asked for, less `short`."""

    def __init__(self, short: int = 0) -> None:
        self.info = SimpleNamespace(vocab_size=500)
        self.seen: list[tuple[list[int], Any]] = []
        self._short = short

    def generate(self, prompts: list[dict[str, list[int]]], params: list[Any]) -> list[Any]:
        self.seen += [(prompt["prompt_token_ids"], p) for prompt, p in zip(prompts, params, strict=True)]
        made = [list(range(p.max_tokens - self._short)) for p in params]
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids)]) for ids in made]


def test_a_run_hands_over_every_request_with_the_reference_sampling() -> None:
    llm = CountingLLM()
    assert offline.time_run(cast(Any, llm), TINY, 1) > 0
    requests = TINY.requests(1, 500)
    assert [ids for ids, _ in llm.seen] == [r.prompt_token_ids for r in requests]
    assert [p.max_tokens for _, p in llm.seen] == [r.output_tokens for r in requests]
    assert {(p.temperature, p.ignore_eos, p.detokenize, p.n) for _, p in llm.seen} == {(0.6, True, False, 1)}


def test_options_are_mixed_with_greedy_rows() -> None:
    llm = CountingLLM()
    offline.time_run(cast(Any, llm), WORKLOADS["decode64-options"], 0)
    params = [p for _, p in llm.seen]
    assert [p.temperature for p in params[:5]] == [0.0, 0.6, 0.6, 0.6, 0.0]
    assert {(p.top_p, p.top_k, p.min_p, p.repetition_penalty, p.logprobs) for p in params} == {(0.9, 50, 0.05, 1.1, 5)}
    assert len({p.seed for p in params}) == 64


def test_missing_tokens_are_an_error_not_a_fast_run() -> None:
    with pytest.raises(ThraniteError, match="tokens came where"):
        offline.time_run(cast(Any, CountingLLM(short=1)), TINY, 0)


def test_figures() -> None:
    work = WORKLOADS["decode64"]
    figures = Figures("llama-8b", work, (2.0, 1.0, 4.0), 9.0, floor_seconds=1.0, vllm=6.91)
    assert figures.output_rate == work.output_tokens / 2.0
    assert figures.total_rate == (8192 + 16384) / 2.0
    assert figures.step_ms == 2000 / 256
    assert figures.spread == 3.0
    assert figures.floor_ratio == 0.5
    assert figures.vllm_ratio == pytest.approx(6.91 / (2000 / 256))
    throughput = Figures("m", WORKLOADS["mixed"], (10.0,), 0.0, 1.0, vllm=10_000)
    assert throughput.vllm_ratio == pytest.approx(1.40797)


def test_rows_choose_workloads_by_model() -> None:
    args = parsed("--rows", "llama-8b/mixed,some/where/decode1,llama-8b/decode64")
    assert args.rows == {"llama-8b": ["mixed", "decode64"], "some/where": ["decode1"]}


@pytest.mark.parametrize("rows", ["mixed", "llama-8b/fast", "llama-8b/mixed,"])
def test_a_row_that_is_none_is_named(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed("--rows", rows)
    assert "is not MODEL/WORKLOAD with one of the workloads mixed, mixed1k" in capsys.readouterr().err


def test_a_trace_without_a_gpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--profile traces a GPU's kernels"):
        offline.run(parsed("llama-8b", "--device", "null", "--profile", str(tmp_path / "traces")))
    assert not (tmp_path / "traces").exists()


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    offline.add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.mark.parametrize("form", ["table", "json"])
def test_the_null_device_runs_a_workload(
    form: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(WORKLOADS, "tiny", TINY)
    arguments = ["llama-8b", "--device", "null", "--workload", "tiny", "--runs", "2"]
    assert offline.run(parsed(*arguments, *(["--json"] if form == "json" else []))) == 0
    printed = capsys.readouterr()
    assert "llama-8b tiny: " in printed.err
    if form == "table":
        assert "0 kernels were compiled after Ready" in printed.out
        assert "llama-8b: ready " in printed.out
        assert "llama-8b" in printed.out
        assert f"{TINY.prompt_tokens:,}" in printed.out
        return
    record = json.loads(printed.out)
    assert set(record["machine"]) == {"device", "torch", "thranite"}
    assert record["machine"]["device"] == "null (tokens made up)"
    [figures] = record["figures"]
    assert (figures["floor_ratio"], figures["vllm_ratio"]) == (None, None)  # this is not the reference GPU
    assert len(figures["seconds"]) == 2
    assert (figures["compiled_kernels"], figures["step_parts"]) == (0, None)
    assert figures["first_ratio"] == pytest.approx(figures["seconds"][0] / figures["median_seconds"])
    assert (figures["prompt_tokens"], figures["output_tokens"]) == (TINY.prompt_tokens, TINY.output_tokens)
    assert figures["output_tokens_per_second"] == pytest.approx(TINY.output_tokens / figures["median_seconds"])


def test_cost_of_every_option_is_the_ratio_of_two_rows() -> None:
    def figures(model: str, name: str, seconds: float) -> Figures:
        return Figures(model, WORKLOADS[name], (seconds,), 0.0, None, None)

    both = [figures("m", "decode64", 2.0), figures("m", "decode64-options", 2.2), figures("n", "decode64", 1.0)]
    assert option_ratios(both) == ["m: every sampling option costs +10.0% (8.59 against 7.81 ms/step)"]
