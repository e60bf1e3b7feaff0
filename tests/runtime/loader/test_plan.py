"""The memory plan: figures by hand, limits as properties, refusals with their arithmetic."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.specs import layer_spec, llama_8b, model_spec
from thranite.config import EngineConfig
from thranite.errors import ConfigError, DoesNotFit, UnsupportedModel
from thranite.loader.device_memory import GIB, MIB, DeviceMemory, null_memory
from thranite.loader.memory_needs import SHARED_STEP_TOKENS
from thranite.loader.plan import AUTOMATIC_MIN_LEN, CPU_KV_BYTES, NULL_KV_BLOCKS, plan_memory
from thranite.loader.plan_report import render

H200 = DeviceMemory("cuda", "H200", 143_771 * MIB, 143_771 * MIB)
L4 = DeviceMemory("cuda", "L4", 23_034 * MIB, 23_034 * MIB)


def config(**options: Any) -> EngineConfig:
    return EngineConfig(model="m", **options)


def cuda(total: int) -> DeviceMemory:
    return DeviceMemory("cuda", "GPU", total, total)


def cpu(available: int) -> DeviceMemory:
    return DeviceMemory("cpu", "CPU", available * 2, available)


def test_llama_8b_on_an_h200() -> None:
    plan = plan_memory(llama_8b(), config(), H200)
    assert plan.weight_bytes == 8_030_261_248 * 2
    assert plan.layout.page_bytes == 64 * 2 * 8 * 128 * 2 * 32  # tokens, k and v, heads, dim, bytes, layers
    assert plan.num_blocks == (plan.budget_bytes - plan.weight_bytes - plan.activation_bytes - GIB) // (8 * MIB)
    assert (plan.max_num_seqs, plan.max_num_batched_tokens, plan.block_size) == (1024, 8448, 64)
    assert plan.max_model_len == 131_072
    assert plan.max_concurrency == pytest.approx((plan.num_blocks - 1) / 2048)
    assert (plan.dtype, plan.kv_cache_dtype) == ("bfloat16", "bfloat16")
    assert plan.notes == ()


@pytest.mark.parametrize("dtype", ["auto", "float16"])
def test_float16_is_refused_where_residuals_exceed_it(dtype: str) -> None:
    gemma = replace(model_spec(dtype="float16"), architecture="Gemma3ForCausalLM", sandwich_norms=True)
    with pytest.raises(UnsupportedModel, match=r"Gemma3ForCausalLM does not run in float16.*\n.*--dtype bfloat16"):
        plan_memory(gemma, config(dtype=dtype), H200)
    assert plan_memory(gemma, config(dtype="bfloat16"), H200).dtype == "bfloat16"
    assert plan_memory(gemma, config(), cpu(16 * GIB)).dtype == "float32"
    assert plan_memory(model_spec(dtype="float16"), config(dtype=dtype), H200).dtype == "float16"


def test_a_step_over_several_gpus_is_as_long_as_one_sum_takes() -> None:
    assert plan_memory(llama_8b(), config(tensor_parallel_size=2), H200).max_num_batched_tokens == SHARED_STEP_TOKENS
    asked = config(tensor_parallel_size=2, max_num_batched_tokens=1000)
    assert plan_memory(llama_8b(), asked, H200).max_num_batched_tokens == 1000


def test_a_length_nobody_asked_for_shrinks_and_says_so() -> None:
    plan = plan_memory(llama_8b(), config(), L4)
    assert AUTOMATIC_MIN_LEN <= plan.max_model_len < 131_072
    assert plan.layout.blocks_for(plan.max_model_len, plan.max_num_batched_tokens) == plan.usable_blocks
    assert plan.max_num_seqs == 256
    assert any("131,072" in note for note in plan.notes)
    assert f"{plan.max_model_len:,} tokens" in render(plan)


def test_a_length_asked_for_is_refused_with_the_largest_that_fits() -> None:
    shrunk = plan_memory(llama_8b(), config(), L4).max_model_len
    with pytest.raises(DoesNotFit) as caught:
        plan_memory(llama_8b(), config(max_model_len=shrunk + 1), L4)
    text = str(caught.value)
    assert f"--max-model-len {shrunk} " in text
    for part in ("22.5 GiB x 0.9", "weights", "8.03 billion x 2 bytes", "activations of 8,448 tokens", "pages of 64"):
        assert part in text
    assert plan_memory(llama_8b(), config(max_model_len=shrunk), L4).max_model_len == shrunk


def test_a_model_that_was_built_for_a_length_serves_none_beyond_it() -> None:
    """Its windows and positions are those of that length, however little the step turned out to take."""
    first = plan_memory(llama_8b(), config(), L4)
    free = plan_memory(llama_8b(), config(), L4, measured_activation_bytes=GIB)
    assert free.max_model_len > first.max_model_len
    plan = plan_memory(llama_8b(), config(), L4, measured_activation_bytes=GIB, longest=first.max_model_len)
    assert (plan.max_model_len, plan.num_blocks) == (first.max_model_len, free.num_blocks)
    assert "built for that" in plan.notes[0]
    less = plan_memory(llama_8b(), config(), L4, measured_activation_bytes=3 * GIB, longest=first.max_model_len)
    assert less.max_model_len < first.max_model_len
    assert "more does not fit" in less.notes[0]


@pytest.mark.parametrize("device", [H200, cpu(GIB), null_memory()])
def test_what_attention_on_gpus_has_no_code_for_is_refused_before_loading(device: DeviceMemory) -> None:
    odd = model_spec(layer_spec(head_dim=24))
    pages = config(block_size=48)
    if device is not H200:
        assert plan_memory(odd, config(), device).layout.groups[0].head_dim == 24
        assert plan_memory(model_spec(), pages, device).block_size == 48
        return
    with pytest.raises(UnsupportedModel, match="heads of 24; on GPUs"):
        plan_memory(odd, config(), device)
    with pytest.raises(ConfigError, match="--block-size must be a power of two on GPUs, got 48"):
        plan_memory(model_spec(), pages, device)


def test_weights_beyond_the_device_name_the_memory_needed() -> None:
    small = cuda(8 * GIB)
    with pytest.raises(DoesNotFit, match=r"use a GPU with (\d+) GiB") as caught:
        plan_memory(llama_8b(), config(max_model_len=4096), small)
    assert "--max-model-len" not in str(caught.value)
    assert str(caught.value.exit_code.name) == "DOES_NOT_FIT"


def test_the_memory_named_is_enough() -> None:
    with pytest.raises(DoesNotFit) as caught:
        plan_memory(llama_8b(), config(max_model_len=4096), cuda(8 * GIB))
    needed = int(str(caught.value).split("with ")[1].split(" GiB")[0])
    plan_memory(llama_8b(), config(max_model_len=4096), cuda((needed + 1) * GIB))


def test_a_device_in_use_is_refused_before_planning() -> None:
    busy = DeviceMemory("cuda", "GPU", 80 * GIB, 40 * GIB)
    with pytest.raises(DoesNotFit, match=r"--gpu-memory-utilization 0\.5 or less"):
        plan_memory(model_spec(), config(), busy)
    plan_memory(model_spec(), config(gpu_memory_utilization=0.5), busy)


def test_a_measured_profile_replaces_estimate_and_reserve() -> None:
    plan = plan_memory(llama_8b(), config(), H200, measured_activation_bytes=3 * GIB)
    assert (plan.activation_bytes, plan.reserve_bytes) == (3 * GIB, 0)
    assert plan.num_blocks == (plan.budget_bytes - plan.weight_bytes - 3 * GIB) // (8 * MIB)
    assert "measured" in render(plan)


def test_the_cpu_takes_what_all_rows_need_and_no_more() -> None:
    plan = plan_memory(model_spec(), config(max_num_seqs=3, max_model_len=100), cpu(64 * GIB))
    assert plan.num_blocks == 3 * 4 + 1  # 100 tokens: 4 pages of 32
    assert (plan.block_size, plan.dtype, plan.max_num_batched_tokens) == (32, "float32", 2048)


def test_the_cpu_keeps_to_its_share_unless_a_length_is_asked_for() -> None:
    spec = llama_8b()
    plan = plan_memory(spec, config(), cpu(256 * GIB))
    assert plan.kv_cache_bytes <= CPU_KV_BYTES
    assert plan.max_model_len < spec.max_position_embeddings
    asked = plan_memory(spec, config(max_model_len=131_072), cpu(256 * GIB))
    assert asked.kv_cache_bytes > CPU_KV_BYTES
    assert asked.usable_blocks == asked.layout.blocks_for(131_072, asked.max_num_batched_tokens)


def test_the_null_device_has_room_for_load_tests() -> None:
    plan = plan_memory(llama_8b(), config(), null_memory())
    assert (plan.num_blocks, plan.weight_bytes, plan.activation_bytes) == (NULL_KV_BLOCKS, 0, 0)
    assert plan.max_model_len == 131_072
    assert render(plan).startswith("device")


def test_kv_cache_memory_bytes_overrides() -> None:
    for device in (H200, cpu(64 * GIB), null_memory()):
        plan = plan_memory(model_spec(), config(kv_cache_memory_bytes=MIB, max_model_len=64), device)
        assert plan.num_blocks == MIB // plan.layout.page_bytes
    with pytest.raises(DoesNotFit, match="--kv-cache-memory-bytes asks for"):
        plan_memory(model_spec(), config(kv_cache_memory_bytes=200 * GIB), H200)
    with pytest.raises(DoesNotFit, match="--kv-cache-memory-bytes"):
        plan_memory(model_spec(), config(kv_cache_memory_bytes=1024, max_model_len=64), null_memory())


def test_window_groups_raise_the_concurrency() -> None:
    full, window = layer_spec(), layer_spec(window=64)
    options = {"kv_cache_memory_bytes": 8 * MIB, "max_model_len": 4096, "max_num_batched_tokens": 256}
    dense = plan_memory(model_spec(*[full] * 6), config(**options), H200)
    mixed = plan_memory(model_spec(*[window] * 5, full), config(**options), H200)
    assert mixed.max_concurrency > 3 * dense.max_concurrency


def test_a_length_beyond_the_models_is_noted() -> None:
    plan = plan_memory(model_spec(positions=64), config(max_model_len=128), cpu(GIB))
    assert plan.max_model_len == 128
    assert "beyond the model's 64 positions" in render(plan)


@given(
    total=st.integers(0, 2**33),
    length=st.none() | st.integers(1, 20_000),
    window=st.none() | st.integers(1, 500),
    block_size=st.sampled_from([1, 8, 16, 32, 64]),
    tokens=st.integers(1, 4096),
    seqs=st.integers(1, 300),
    kind=st.sampled_from(["cuda", "cpu"]),
)
def test_a_plan_fits_its_budget_and_one_longest_sequence(
    total: int, length: int | None, window: int | None, block_size: int, tokens: int, seqs: int, kind: Any
) -> None:
    spec = model_spec(layer_spec(), layer_spec(window=window), layer_spec(window=window))
    options = config(max_model_len=length, block_size=block_size, max_num_batched_tokens=tokens, max_num_seqs=seqs)
    device = DeviceMemory(kind, "any", max(total, 1), max(total, 1))
    try:
        plan = plan_memory(spec, options, device)
    except DoesNotFit as error:
        assert error.hint  # noqa: PT017 - a refusal is one of the two right answers
        return
    used = plan.weight_bytes + plan.activation_bytes + plan.reserve_bytes + plan.kv_cache_bytes
    assert used <= plan.budget_bytes <= device.total_bytes
    assert plan.layout.blocks_for(plan.max_model_len, plan.max_num_batched_tokens) <= plan.usable_blocks
    assert plan.max_concurrency >= 1
    assert length is None or plan.max_model_len == length
