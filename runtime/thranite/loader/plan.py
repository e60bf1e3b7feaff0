"""The memory plan: what weights, activations and the KV cache take of a device, decided before anything is loaded.

    device total x utilization  =  weights + activations + reserve + KV cache
    KV cache                    =  pages x page bytes; page 0 belongs to nobody (NULL_BLOCK)

Of a model split over tensor-parallel ranks, the plan is that of each rank's device. Ranks on the CPU share its memory.

Pure: the same spec, options and device figures give the same plan. A plan that exists can serve at least one sequence
of `max_model_len`; otherwise DoesNotFit shows the arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

from thranite.config import EngineConfig
from thranite.engine.kv_groups import KVLayout
from thranite.errors import ConfigError, DoesNotFit, UnsupportedModel
from thranite.loader.device_memory import GIB, DeviceMemory, format_bytes
from thranite.loader.memory_needs import MemoryNeeds, memory_needs
from thranite.loader.shortage import busy_device, too_small
from thranite.models.spec import ModelSpec

CPU_KV_BYTES = 4 * GIB  # a host's memory has other users, so the KV cache takes no more unless asked
NULL_KV_BLOCKS = 65_536
NULL_PAGES = 1
AUTOMATIC_MIN_LEN = 1024  # a length nobody asked for is not shrunk below this


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Every size the engine needs, resolved. `num_blocks` includes the null page."""

    device: DeviceMemory
    dtype: str
    kv_cache_dtype: str
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    budget_bytes: int  # what the engine may take of the device
    weight_bytes: int
    activation_bytes: int
    reserve_bytes: int
    layout: KVLayout
    num_blocks: int
    activations_measured: bool
    tensor_parallel_size: int
    notes: tuple[str, ...]  # what was decided for the user, in sentences

    @property
    def block_size(self) -> int:
        return self.layout.block_size

    @property
    def kv_cache_bytes(self) -> int:
        return self.num_blocks * self.layout.page_bytes

    @property
    def usable_blocks(self) -> int:
        return self.num_blocks - NULL_PAGES

    @property
    def max_concurrency(self) -> float:
        """Sequences of `max_model_len` that the KV cache holds at once: one in its prompt, the others decoding."""
        peak = self.layout.blocks_for(self.max_model_len, self.max_num_batched_tokens)
        return 1 + (self.usable_blocks - peak) / self.layout.blocks_for(self.max_model_len, 1)


def plan_memory(
    spec: ModelSpec,
    config: EngineConfig,
    device: DeviceMemory,
    *,
    measured_activation_bytes: int | None = None,
    longest: int | None = None,
) -> MemoryPlan:
    """Raise DoesNotFit unless one sequence of the maximum length can run.

    `measured_activation_bytes`: peak of a profiling run beyond the weights, workspaces and context included; it
    replaces the estimate and the reserve. `longest`: the tokens that the model was built for, whose windows and
    positions hold for no longer sequence.
    """
    needs = memory_needs(spec, config, device, measured_activation_bytes)
    if device.kind == "cuda":
        _check_kernels(spec, needs.layout)
    budget = _budget(config, device)
    asked = config.max_model_len or spec.max_position_embeddings
    wanted = asked if longest is None else min(asked, longest)
    num_blocks = max(_num_blocks(config, device, needs, budget, wanted), 0)
    largest = largest_length(needs.layout, num_blocks, wanted, needs.max_num_batched_tokens)
    notes = []
    if largest < wanted:
        exempt = config.kv_cache_memory_bytes is not None
        floor = 1 if exempt else min(AUTOMATIC_MIN_LEN, wanted)
        if config.max_model_len is not None or largest < floor:
            raise too_small(spec, config, device, needs, budget, num_blocks, wanted=wanted, largest=largest)
    served = min(largest, wanted)
    if served < asked:
        why = (
            "more does not fit the KV cache" if longest is None or largest < longest else "the model was built for that"
        )
        notes.append(f"max_model_len is {served:,}, not the model's {asked:,}: {why}")
    if asked > spec.max_position_embeddings:
        notes.append(f"max_model_len {asked:,} is beyond the model's {spec.max_position_embeddings:,} positions")
    return MemoryPlan(
        device=device,
        dtype=needs.dtype,
        kv_cache_dtype=needs.kv_cache_dtype,
        max_model_len=served,
        max_num_seqs=needs.max_num_seqs,
        max_num_batched_tokens=needs.max_num_batched_tokens,
        budget_bytes=budget,
        weight_bytes=needs.weight_bytes,
        activation_bytes=needs.activation_bytes,
        reserve_bytes=needs.reserve_bytes,
        layout=needs.layout,
        num_blocks=num_blocks,
        activations_measured=measured_activation_bytes is not None,
        tensor_parallel_size=config.tensor_parallel_size,
        notes=tuple(notes),
    )


def _check_kernels(spec: ModelSpec, layout: KVLayout) -> None:
    """Attention on GPUs has no code for other pages and heads."""
    if layout.block_size & (layout.block_size - 1):
        raise ConfigError(f"--block-size must be a power of two on GPUs, got {layout.block_size}")
    for head_dim in sorted({layer.head_dim for layer in spec.layers}):
        if head_dim % 16 or head_dim > 256:
            raise UnsupportedModel(
                f"{spec.architecture} has heads of {head_dim}; on GPUs attention takes multiples of 16 up to 256"
            )


def largest_length(layout: KVLayout, num_blocks: int, limit: int, chunk: int) -> int:
    """The longest sequence, at most `limit` tokens, whose pages `num_blocks` hold besides the null page."""
    usable = num_blocks - NULL_PAGES
    low, high = 0, limit  # blocks_for grows with the length, and `low` tokens always fit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if layout.blocks_for(middle, chunk) <= usable else (low, middle - 1)
    return low


def _budget(config: EngineConfig, device: DeviceMemory) -> int:
    """Bytes the engine may take of the device."""
    if device.kind == "cuda":
        budget = int(device.total_bytes * config.gpu_memory_utilization)
        if budget > device.available_bytes:
            raise busy_device(config, device, budget)
        return budget
    if device.kind == "cpu":
        return int(device.available_bytes * config.gpu_memory_utilization) // config.tensor_parallel_size
    return 0


def _num_blocks(config: EngineConfig, device: DeviceMemory, needs: MemoryNeeds, budget: int, wanted: int) -> int:
    """Pages of the KV cache, the null page included; may be none or negative if the rest takes everything."""
    page = needs.layout.page_bytes
    given = config.kv_cache_memory_bytes
    if device.kind == "null":
        return NULL_KV_BLOCKS if given is None else given // page
    left = budget - needs.fixed_bytes
    if given is not None:
        if given > left:
            raise DoesNotFit(
                f"--kv-cache-memory-bytes asks for {format_bytes(given)}; weights and activations leave "
                f"{format_bytes(max(left, 0))} of {format_bytes(budget)}"
            )
        return given // page
    if device.kind == "cpu":
        one = needs.layout.blocks_for(wanted, needs.max_num_batched_tokens) + NULL_PAGES
        all_rows = one + (needs.max_num_seqs - 1) * needs.layout.blocks_for(wanted, 1)
        # A length asked for by hand may take more than the usual share.
        cap = CPU_KV_BYTES // config.tensor_parallel_size // page
        cap = max(cap, one) if config.max_model_len else cap
        return min(all_rows, cap, left // page)
    return left // page
