"""The tiles of a GPU's attention are those of the cache's elements: fp32 ones of the 16-bit size do not fit."""

from __future__ import annotations

import pytest

from tests.support.torch_engine import GEMMA3, LENGTH
from thranite.attention.base import TORCH_DTYPES, KVCache
from thranite.attention.triton import TritonAttention
from thranite.engine.kv_groups import plan_kv_layout
from thranite.models.registry import load_spec
from thranite.runner.pretended_gpu import DEVICE, pretended_gpu
from thranite_kernels.target import Target, decode_config, prefill_config


@pytest.mark.parametrize(("dtype", "itemsize"), [("bfloat16", 2), ("float32", 4)])
@pytest.mark.parametrize("capability", [80, 90])
def test_tiles_by_the_size_of_an_element(capability: int, dtype: str, itemsize: int) -> None:
    spec = load_spec({**GEMMA3, "head_dim": 256}, dtype=dtype, max_model_len=LENGTH)
    with pretended_gpu(target := Target(capability, 108)):
        cache = KVCache(plan_kv_layout(spec, 64, dtype), 4, DEVICE)
        attention = TritonAttention(spec, cache, LENGTH, TORCH_DTYPES[dtype], DEVICE)
        decodes = attention.decode_plans(8, DEVICE, {})
        prefills = attention.prefill_plans(2, 64, DEVICE)
    assert {plan.config for plan in decodes.values()} == {decode_config(target, 256, itemsize)}
    assert {plan.config for plan in prefills.values()} == {prefill_config(target, 256, itemsize)}
