"""DoesNotFit with its whole arithmetic and what to change."""

from __future__ import annotations

from thranite.config import EngineConfig
from thranite.errors import DoesNotFit
from thranite.loader.device_memory import GIB, DeviceMemory, format_bytes
from thranite.loader.memory_needs import MemoryNeeds
from thranite.models.partition import possible_sizes, rank_parameters
from thranite.models.spec import DTYPE_BYTES, ModelSpec


def busy_device(config: EngineConfig, device: DeviceMemory, budget: int) -> DoesNotFit:
    """Others hold memory that the utilization counts on."""
    share = device.available_bytes / device.total_bytes
    return DoesNotFit(
        f"{device.name}: {format_bytes(device.available_bytes)} of {format_bytes(device.total_bytes)} are free, "
        f"but --gpu-memory-utilization {config.gpu_memory_utilization:g} asks for {format_bytes(budget)}",
        f"end the other processes on this device, or pass --gpu-memory-utilization {int(share * 100) / 100:g} or less",
    )


def memory_taken(config: EngineConfig, error: Exception) -> DoesNotFit:
    """A device refused memory that was free when the plan was made. `error`: torch's; it says how much, and who holds
    the rest."""
    return DoesNotFit(
        f"the device refuses memory that the plan counts on: {error}",
        "where another process has taken it since, give each a share that leaves room for the others "
        f"(--gpu-memory-utilization, here {config.gpu_memory_utilization:g})",
    )


def too_small(
    spec: ModelSpec,
    config: EngineConfig,
    device: DeviceMemory,
    needs: MemoryNeeds,
    budget: int,
    num_blocks: int,
    *,
    wanted: int,
    largest: int,
) -> DoesNotFit:
    """The KV cache that is left holds no sequence of `wanted` tokens."""
    layout = needs.layout
    pages = layout.blocks_for(wanted, needs.max_num_batched_tokens)
    one = (pages + 1) * layout.page_bytes
    have = num_blocks * layout.page_bytes
    ranks = config.tensor_parallel_size
    split = "" if ranks == 1 else f", split over {ranks} ranks; each:"
    lines = [
        f"{config.model} ({spec.architecture}) does not fit {device.name}{split}",
        *_arithmetic(spec, config, device, needs, budget, have),
        f"  one sequence of {wanted:,} tokens needs {format_bytes(one)}: {pages:,} pages of "
        f"{layout.block_size} tokens and {format_bytes(layout.page_bytes)}, and the null page",
    ]
    return DoesNotFit("\n".join(lines), "; or ".join(_advice(spec, config, device, needs, one, have, largest)))


def _arithmetic(
    spec: ModelSpec, config: EngineConfig, device: DeviceMemory, needs: MemoryNeeds, budget: int, have: int
) -> list[str]:
    if device.kind == "null":
        return [f"  KV cache {format_bytes(have)}"]
    base = device.total_bytes if device.kind == "cuda" else device.available_bytes
    what = "memory" if device.kind == "cuda" else "free memory"
    ranks = config.tensor_parallel_size
    parameters = rank_parameters(spec, ranks) / 1e9
    share = f" x {config.gpu_memory_utilization:g}" + (f" / {ranks}" if device.kind == "cpu" and ranks > 1 else "")
    rows = [
        (f"{what} {format_bytes(base)}{share}", budget),
        (f"- weights, {parameters:.2f} billion x {DTYPE_BYTES[needs.dtype]} bytes", needs.weight_bytes),
        (f"- activations of {needs.max_num_batched_tokens:,} tokens a step", needs.activation_bytes),
        ("- context and graphs", needs.reserve_bytes),
        ("= left for the KV cache", budget - needs.fixed_bytes),
    ]
    width = max(len(label) for label, _ in rows)
    lines = [f"  {label:<{width}}  {format_bytes(count):>10}" for label, count in rows]
    if config.kv_cache_memory_bytes is not None:
        lines.append(f"  {'--kv-cache-memory-bytes':<{width}}  {format_bytes(have):>10}")
    return lines


def _advice(
    spec: ModelSpec,
    config: EngineConfig,
    device: DeviceMemory,
    needs: MemoryNeeds,
    one: int,
    have: int,
    largest: int,
) -> list[str]:
    """What would make it fit, best first."""
    ways = [f"pass --max-model-len {largest} or less"] if largest > 0 else []
    missing = one - have
    if config.kv_cache_memory_bytes is not None:
        return [*ways, f"pass --kv-cache-memory-bytes {one} or more"]
    if needs.activation_bytes // 2 >= missing and config.max_num_batched_tokens != 1:
        ways.append(f"pass --max-num-batched-tokens {needs.max_num_batched_tokens // 2} or --max-num-seqs "
                    f"{max(needs.max_num_seqs // 2, 1)}")  # fmt: skip
    if DTYPE_BYTES[needs.dtype] > 2:
        ways.append("pass --dtype bfloat16")
    wider = [size for size in possible_sizes(spec) if size > config.tensor_parallel_size]
    if wider and device.kind == "cuda":
        ways.append(f"pass --tensor-parallel-size {wider[0]}")
    total = (needs.fixed_bytes + one) / config.gpu_memory_utilization
    ways.append(f"use a {'GPU' if device.kind == 'cuda' else 'machine'} with {total / GIB:.0f} GiB of memory or more")
    return ways
