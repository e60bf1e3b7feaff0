"""Every family over 1, 2 and 4 ranks, from its checkpoint: the same greedy tokens in fp32, the same on every rank."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.families import CPU, SIZES, generate, load
from tests.support.thread_ranks import ThreadCommunicator, run_ranks
from tests.support.tiny_models import TINY_MODELS, TinyModel, build, save
from thranite.layers.communicator import ALONE, Communicator
from thranite.loader.checkpoint import load_model
from thranite.models.decoder import Decoder
from thranite.models.partition import rank_parameters
from thranite.models.registry import load_spec
from thranite.models.spec import ModelSpec

FAMILIES = ["llama", "llama-biased-tied", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3-long"]
WIDE: Mapping[str, Any] = {"num_attention_heads": 8, "hidden_size": 128, "intermediate_size": 96}


def wide(model: TinyModel, kv_heads: int) -> TinyModel:
    return replace(model, options={**model.options, **WIDE, "num_key_value_heads": kv_heads})


@pytest.mark.parametrize("kv_heads", [1, 2, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_ranks_agree_with_one(family: str, kv_heads: int, tmp_path: Path) -> None:
    model = wide(TINY_MODELS[family], kv_heads)
    directory = save(model, build(model), tmp_path)
    alone, want_scores = generate(load(directory))
    assert len(set(alone["sampled", 0])) > 2, "a model that repeats one token proves little"
    for size in SIZES:

        def on_rank(ranks: ThreadCommunicator) -> Any:
            decoder = load(directory, ranks)
            assert sum(p.numel() for p in decoder.parameters()) == rank_parameters(decoder.spec, ranks.size)
            return generate(decoder)

        for got, scores in run_ranks(size, on_rank):
            assert got == alone
            assert scores == pytest.approx(want_scores, abs=1e-4)


def test_processes_over_gloo_agree_with_one(tmp_path: Path) -> None:
    """The same processes run every family in turn: most of the time is torch's import."""
    models = [wide(TINY_MODELS[family], 2) for family in FAMILIES]
    directories = [save(model, build(model), tmp_path / family) for model, family in zip(models, FAMILIES, strict=True)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "tests.support.families"]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path), *map(str, directories)], env=environment)
        for rank in range(max(SIZES))
    ]
    try:
        alone = [generate(load(directory)) for directory in directories]
        assert [process.wait(120) for process in processes] == [0] * len(processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for size, rank in [(count, rank) for count in SIZES for rank in range(count)]:
        found = json.loads((tmp_path / f"{size}-{rank}.json").read_text())
        for family, (want, want_scores), (texts, scores) in zip(FAMILIES, alone, found, strict=True):
            assert {(name, index): text for name, index, text in texts} == want, (family, size, rank)
            assert scores == pytest.approx(want_scores, abs=1e-4), (family, size, rank)


def dummy(spec: ModelSpec, communicator: Communicator = ALONE) -> Decoder:
    return load_model(spec, None, dtype=torch.float32, device=CPU, load_format="dummy", communicator=communicator)


@pytest.mark.parametrize("family", ["llama", "llama-biased-tied", "gemma3", "phi3-long"])
def test_dummy_weights_do_not_depend_on_the_ranks(family: str) -> None:
    model = wide(TINY_MODELS[family], 2)
    options = {**model.options, "architectures": [model.architecture], "head_dim": 16}
    spec = load_spec(options, max_model_len=96)
    alone = dummy(spec).state_dict()
    ranks = run_ranks(4, lambda communicator: dummy(spec, communicator).state_dict())
    for name, want in alone.items():
        parts = [rank[name] for rank in ranks]
        if name.endswith(("out.weight", "down.weight")):
            assert torch.equal(torch.cat(parts, dim=1), want), name
        elif name.endswith(("out.bias", "down.bias")):
            assert torch.equal(torch.stack(parts).sum(0), want), name
        elif name.startswith(("embedding", "head")):
            assert torch.equal(torch.cat(parts)[: len(want)], want), name
            assert not torch.cat(parts)[len(want) :].any()
        elif "gate_up" in name:
            halves = [torch.cat([part.chunk(2)[half] for part in parts]) for half in (0, 1)]
            assert torch.equal(torch.cat(halves), want), name
        elif "qkv" in name:  # 8 query heads of 16, then one replicated KV head of two
            queries = torch.cat([part[:32] for part in parts])
            keys = torch.cat([parts[0][32:48], parts[2][32:48]])
            values = torch.cat([parts[1][48:], parts[3][48:]])
            assert torch.equal(torch.cat([queries, keys, values]), want), name
        else:
            assert all(torch.equal(part, want) for part in parts), name
