"""Every family over 1, 2 and 4 ranks, from its checkpoint: the same greedy tokens in fp32, the same on every rank."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.thread_ranks import ThreadCommunicator, run_ranks
from tests.support.tiny_models import TINY_MODELS, TinyModel, build, save
from tests.support.torch_engine import finish, tokens
from thranite.engine.engine import Engine
from thranite.engine.kv_groups import plan_kv_layout
from thranite.engine.settings import EngineSettings
from thranite.layers.communicator import ALONE, Communicator
from thranite.loader.checkpoint import load_model
from thranite.models.decoder import Decoder
from thranite.models.partition import rank_parameters
from thranite.models.registry import load_spec
from thranite.models.spec import ModelSpec
from thranite.request import EngineRequest
from thranite.runner.executor import TorchExecutor
from thranite.sampling_params import TokenParams

CPU = torch.device("cpu")
FAMILIES = ["llama", "llama-biased-tied", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3-long"]
WIDE: Mapping[str, Any] = {"num_attention_heads": 8, "hidden_size": 128, "intermediate_size": 96}
OUTPUT = 8


def wide(model: TinyModel, kv_heads: int) -> TinyModel:
    return replace(model, options={**model.options, **WIDE, "num_key_value_heads": kv_heads})


def load(directory: Path, communicator: Communicator = ALONE) -> Decoder:
    spec = load_spec(json.loads((directory / "config.json").read_text()), max_model_len=96)
    return load_model(spec, directory, dtype=torch.float32, device=CPU, communicator=communicator)


def engine_over(model: Decoder) -> Engine:
    settings = EngineSettings(
        layout=plan_kv_layout(model.rank_spec, 8, "float32"),
        num_blocks=200,
        vocab_size=model.spec.vocab_size,
        max_model_len=96,
        max_num_seqs=8,
        max_num_batched_tokens=40,
        overlap=True,
    )
    return Engine(settings, TorchExecutor(model, model.rank_spec, settings, CPU))


def requests() -> list[EngineRequest]:
    prompts = [tuple((7 * i * i + 3 * i + salt) % 190 + 3 for i in range(count)) for salt, count in ((1, 50), (5, 9))]
    greedy = TokenParams(OUTPUT, seed=0, temperature=0.0, logprobs=1, prompt_logprobs=1)
    sampled = TokenParams(OUTPUT, seed=3, temperature=1.0, n=2)
    return [
        EngineRequest("long", prompts[0], greedy),
        EngineRequest("short", prompts[1], greedy),
        EngineRequest("sampled", prompts[0], sampled),
    ]


def generate(model: Decoder) -> tuple[dict[tuple[str, int], list[int]], list[float]]:
    """Tokens, and the logprobs of the greedy requests' prompts and outputs."""
    deltas = finish(engine_over(model), requests())
    scores = [score for rows in deltas.values() for delta in rows for score in delta.prompt_logprobs or ()]
    scores += [score for rows in deltas.values() for delta in rows for score in delta.logprobs or ()]
    return {key: tokens(rows) for key, rows in deltas.items()}, [score.logprob for score in scores if score is not None]


@pytest.mark.parametrize("kv_heads", [1, 2, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_ranks_agree_with_one(family: str, kv_heads: int, tmp_path: Path) -> None:
    model = wide(TINY_MODELS[family], kv_heads)
    directory = save(model, build(model), tmp_path)
    alone, want_scores = generate(load(directory))
    assert len(set(alone["sampled", 0])) > 2, "a model that repeats one token proves little"
    for size in (2, 4):

        def on_rank(ranks: ThreadCommunicator) -> Any:
            decoder = load(directory, ranks)
            assert sum(p.numel() for p in decoder.parameters()) == rank_parameters(decoder.spec, ranks.size)
            return generate(decoder)

        for got, scores in run_ranks(size, on_rank):
            assert got == alone
            assert scores == pytest.approx(want_scores, abs=1e-4)


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
