"""What a model needs at the engine's options, whatever the device has: dtypes, limits, weights, activations."""

from __future__ import annotations

from dataclasses import dataclass

from thranite.config import EngineConfig
from thranite.engine.kv_groups import KVLayout, plan_kv_layout
from thranite.errors import UnsupportedModel
from thranite.loader.device_memory import GIB, DeviceKind, DeviceMemory
from thranite.models.partition import rank_parameters, rank_spec
from thranite.models.spec import DTYPE_BYTES, ModelSpec

# Rows of logits a slice of prompt logprobs holds at once; the runner cuts by it and the plan counts it.
PROMPT_LOGPROB_ROWS = 256
# float32 arrays of [rows, vocabulary] alive at once while sampling: logits, their processed copy, a sort or softmax.
LOGITS_COPIES = 3
# CUDA context, library workspaces and captured graphs: outside the allocator's sight, about 0.8 GiB on an H200.
CUDA_RESERVE = GIB
LARGE_GPU_BYTES = 79_000_000_000  # "80 GB" as the cheapest such card reports it


@dataclass(frozen=True, slots=True)
class Defaults:
    """What an option left open becomes on a kind of device."""

    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int


DEFAULTS: dict[DeviceKind, Defaults] = {
    "cuda": Defaults(64, 256, 8448),
    "cpu": Defaults(32, 64, 2048),
    "null": Defaults(16, 256, 8192),
}
LARGE_GPU_NUM_SEQS = 1024
SHARED_STEP_TOKENS = 8192
"""Of a GPU among several: rows of 4,096 that `two_shot_all_reduce_norm` sums at once."""


@dataclass(frozen=True, slots=True)
class MemoryNeeds:
    """Options resolved for a kind of device, and the bytes on each rank that follow from them before any KV cache."""

    dtype: str
    kv_cache_dtype: str
    max_num_seqs: int
    max_num_batched_tokens: int
    weight_bytes: int
    activation_bytes: int
    reserve_bytes: int
    layout: KVLayout

    @property
    def fixed_bytes(self) -> int:
        return self.weight_bytes + self.activation_bytes + self.reserve_bytes


def memory_needs(
    spec: ModelSpec, config: EngineConfig, device: DeviceMemory, measured_activation_bytes: int | None = None
) -> MemoryNeeds:
    """`measured_activation_bytes`: from a profiling run; it includes what the reserve stands for."""
    defaults = DEFAULTS[device.kind]
    large = device.kind == "cuda" and device.total_bytes >= LARGE_GPU_BYTES
    dtype = resolve_dtype(spec, config, device.kind)
    kv_dtype = dtype if config.kv_cache_dtype == "auto" else config.kv_cache_dtype
    seqs = config.max_num_seqs or (LARGE_GPU_NUM_SEQS if large else defaults.max_num_seqs)
    pretended = device.kind == "null"
    ranks = config.tensor_parallel_size
    shared = device.kind == "cuda" and ranks > 1
    tokens = config.max_num_batched_tokens or (SHARED_STEP_TOKENS if shared else defaults.max_num_batched_tokens)
    part = rank_spec(spec, ranks)
    estimate = 0 if pretended else activation_estimate(part, dtype, seqs, tokens, ranks)
    measured = measured_activation_bytes is not None
    return MemoryNeeds(
        dtype=dtype,
        kv_cache_dtype=kv_dtype,
        max_num_seqs=seqs,
        max_num_batched_tokens=tokens,
        weight_bytes=0 if pretended else rank_parameters(spec, ranks) * DTYPE_BYTES[dtype],
        activation_bytes=estimate if measured_activation_bytes is None else measured_activation_bytes,
        reserve_bytes=CUDA_RESERVE if device.kind == "cuda" and not measured else 0,
        layout=plan_kv_layout(part, config.block_size or defaults.block_size, kv_dtype),
    )


def resolve_dtype(spec: ModelSpec, config: EngineConfig, kind: DeviceKind) -> str:
    """auto is the checkpoint's type; on the CPU float32, where half types have no fast products."""
    automatic = "float32" if kind == "cpu" else spec.dtype
    dtype = automatic if config.dtype == "auto" else config.dtype
    if dtype == "float16" and spec.sandwich_norms:  # weights of those norms make residuals of hundreds of thousands
        raise UnsupportedModel(
            f"{spec.architecture} does not run in float16: its residuals exceed that type's range and become NaN",
            hint="--dtype bfloat16 (on the CPU and on GPUs before sm_80 --dtype float32)",
        )
    return dtype


def activation_estimate(
    spec: ModelSpec, dtype: str, max_num_seqs: int, max_num_batched_tokens: int, ranks: int = 1
) -> int:
    """Peak bytes of one step: the widest layer's temporaries, then logits of all rows and a prompt-logprob slice.

    `spec`: of one rank. Logits that are gathered from several exist once more, in the ranks' order.
    """
    widest = 0
    for layer in spec.layers:
        q, kv = layer.num_heads * layer.head_dim, layer.num_kv_heads * layer.head_dim
        # residual and normalised input, beside QKV and attention's output, or gate-up, its product and the output
        widest = max(widest, 2 * spec.hidden_size + max(2 * q + 2 * kv, 3 * layer.intermediate_size + spec.hidden_size))
    tokens = max_num_batched_tokens * widest * DTYPE_BYTES[dtype]
    rows = max_num_seqs + min(PROMPT_LOGPROB_ROWS, max_num_batched_tokens)
    copies = LOGITS_COPIES if ranks == 1 else LOGITS_COPIES + 1
    return tokens + copies * rows * spec.vocab_size * 4
