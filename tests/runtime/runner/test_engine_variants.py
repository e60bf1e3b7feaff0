"""What is found to be needed, from two layers of a kind and few rows, is what the whole engine launches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.support.torch_engine import GEMMA3, LENGTH, LLAMA
from thranite.engine.kv_groups import plan_kv_layout
from thranite.engine.settings import EngineSettings
from thranite.layers.communicator import ALONE
from thranite.models.decoder import Decoder
from thranite.models.registry import load_spec
from thranite.runner.cuda_executor import CudaExecutor
from thranite.runner.cuda_profile import largest_step
from thranite.runner.engine_variants import engine_variants
from thranite.runner.pretended_gpu import DEVICE, pretended_gpu
from thranite_kernels.skinny_gemm import GemmScratch, skinny_gemm
from thranite_kernels.target import Target
from thranite_kernels.variant import Variant

TARGET = Target(90, 132)


@pytest.mark.parametrize("config", [{**LLAMA, "num_hidden_layers": 5}, GEMMA3])
def test_they_are_the_whole_engines(config: dict[str, Any]) -> None:
    spec = load_spec(config, dtype="bfloat16", max_model_len=LENGTH)
    settings = EngineSettings(
        layout=plan_kv_layout(spec, 64, "bfloat16"),
        num_blocks=1000,
        vocab_size=spec.vocab_size,
        max_model_len=LENGTH,
        max_num_seqs=40,
        max_num_batched_tokens=2048,
    )
    found = engine_variants(spec, settings, TARGET, torch.bfloat16, lambda device: ALONE)
    with pretended_gpu(TARGET) as variants:
        model = Decoder(spec, torch.bfloat16, DEVICE)
        for blocks in (1001, 1024):
            executor = CudaExecutor(model, spec, replace(settings, num_blocks=blocks), DEVICE, 256)
            executor.launch(largest_step(settings))
            executor.sample({})
            executor.collect()
            executor.capture()
        whole = set(variants)
    assert set(found) == whole
    assert len(found) == len(whole) > 20


@pytest.mark.parametrize(("rows", "early"), [(1, True), (8, False)])
def test_one_is_compiled_as_the_engine_launches_it(rows: int, early: bool) -> None:
    """Of the kernels that may begin early, also those that do not."""
    with pretended_gpu(TARGET) as variants:
        x, weight = (torch.empty(size, 1024, dtype=torch.bfloat16, device=DEVICE) for size in (rows, 256))
        skinny_gemm(x, weight, GemmScratch.allocate(256, DEVICE))
    (variant,) = variants
    assert Variant.of(variant.launch()) == variant
    assert ("griddepcontrol" in variant.launch().compile(TARGET.capability).asm["ptx"]) == early
