"""The CPU comparison: fairness of turns, arithmetic of the bars, and the two contestants on a tiny model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from thranite.bench import cpu
from thranite.bench.cpu_contestants import Transformers
from thranite.bench.interleave import Bar, Contestant, interleave, medians
from thranite.bench.workloads import Request


def test_contestants_take_turns_and_the_first_place_rotates() -> None:
    order: list[str] = []

    def contestant(name: str) -> Contestant:
        def once(repeat: int) -> float:
            order.append(f"{name}{repeat}")
            return float(repeat)

        return once

    figures = interleave({name: contestant(name) for name in "abc"}, 3)
    assert order == ["a0", "b0", "c0", "b1", "c1", "a1", "c2", "a2", "b2"]
    assert figures == {name: [0.0, 1.0, 2.0] for name in "abc"}
    assert medians({"a": [5.0, 1.0, 2.0]}) == {"a": 2.0}


@pytest.mark.parametrize(("ratio", "at_least", "met"), [(1.0, True, True), (0.9, True, False), (0.9, False, True)])
def test_bars(ratio: float, at_least: bool, met: bool) -> None:
    assert Bar("x", ratio, 1.0, at_least).met is met


def test_ratios() -> None:
    rates = {cpu.STREAM: 30.0, cpu.STREAM_HF: 20.0, cpu.TOGETHER: 60.0, cpu.ALONE: 30.0, cpu.BATCH_HF: 50.0}
    bars = cpu.compare(rates, {cpu.COLD: 2.0, cpu.CACHED: 0.5})
    assert [bar.ratio for bar in bars] == [1.5, 2.0, 1.2, 0.25]
    assert [bar.met for bar in bars] == [True, False, False, True]


def test_work_repeats_lengths_and_never_ids() -> None:
    work = cpu.Work(1000)
    first, second = work.crowd("a"), work.crowd("b")
    assert [(len(r.prompt_token_ids), r.output_tokens) for r in first] == [
        (len(r.prompt_token_ids), r.output_tokens) for r in second
    ]
    assert first[0].prompt_token_ids[:8] != second[0].prompt_token_ids[:8]
    assert all(16 <= r.output_tokens <= 256 for r in first)
    shared, other = work.prompt("head", "x")[0].prompt_token_ids, work.prompt("head", "y")[0].prompt_token_ids
    assert len(shared) == 512
    assert shared[:461] == other[:461]
    assert shared[461:] != other[461:]


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
    )
    directory = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def test_transformers_decodes_a_padded_batch_to_its_longest_output(tiny_model: Path) -> None:
    batch = [Request([11, 12, 13], 2), Request([14], 5)]
    assert Transformers(str(tiny_model)).padded_batch(batch) > 0


def test_the_whole_comparison_on_a_tiny_model(
    tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "STREAM_OUTPUT", 4)
    monkeypatch.setattr(cpu, "CROWD_OUTPUT", (2, 6))
    parser = argparse.ArgumentParser()
    cpu.add_arguments(parser)
    assert cpu.run(parser.parse_args([str(tiny_model), "--repeats", "1", "--json"])) == 0
    record = json.loads(capsys.readouterr().out)
    assert set(record["first_token_seconds"]) == {cpu.COLD, cpu.CACHED}
    assert len(record["tokens_per_second"]) == 5
    assert [bar["bound"] for bar in record["bars"]] == [1.0, 3.0, 1.3, 0.3]
