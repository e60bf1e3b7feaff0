"""The memory plan as text: what `thranite serve` prints at start and `thranite check` answers."""

from __future__ import annotations

from thranite.loader.device_memory import format_bytes
from thranite.loader.plan import MemoryPlan


def render(plan: MemoryPlan) -> str:
    """One line a figure, aligned; notes last."""
    rows = [*_memory_rows(plan), *_limit_rows(plan)]
    width = max(len(label) for label, _ in rows)
    lines = [f"{label:<{width}}  {value}" for label, value in rows]
    return "\n".join([*lines, *(f"note: {note}" for note in plan.notes)])


def _memory_rows(plan: MemoryPlan) -> list[tuple[str, str]]:
    if plan.device.kind == "null":
        return [("device", plan.device.name)]
    how = "measured" if plan.activations_measured else "estimate"
    rows = [
        ("device", f"{plan.device.name}, {format_bytes(plan.device.total_bytes)}{_ranks(plan)}"),
        ("budget", f"{format_bytes(plan.budget_bytes)}, {_share(plan)}"),
        ("weights", f"{format_bytes(plan.weight_bytes)} ({plan.dtype})"),
        (
            "activations",
            f"{format_bytes(plan.activation_bytes)} ({how}, {plan.max_num_batched_tokens:,} tokens a step)",
        ),
    ]
    if plan.reserve_bytes:
        rows.append(("context, graphs", f"{format_bytes(plan.reserve_bytes)} (estimate)"))
    return rows


def _ranks(plan: MemoryPlan) -> str:
    if plan.tensor_parallel_size == 1:
        return ""
    return f"; one of {plan.tensor_parallel_size} ranks, and all figures are for each"


def _share(plan: MemoryPlan) -> str:
    if plan.device.kind == "cuda":
        return f"{plan.budget_bytes / plan.device.total_bytes:.0%} of the device"
    return f"{plan.budget_bytes / max(plan.device.available_bytes, 1):.0%} of what is free"


def _limit_rows(plan: MemoryPlan) -> list[tuple[str, str]]:
    layout = plan.layout
    groups = ", ".join("full attention" if g.window is None else f"window {g.window:,}" for g in layout.groups)
    return [
        (
            "KV cache",
            f"{format_bytes(plan.kv_cache_bytes)} ({plan.kv_cache_dtype}): {plan.num_blocks:,} pages of "
            f"{plan.block_size} tokens and {format_bytes(layout.page_bytes)}",
        ),
        ("KV groups", f"{len(layout.groups)} of {layout.num_buffers} layers ({groups})"),
        ("longest sequence", f"{plan.max_model_len:,} tokens"),
        ("at that length", f"{plan.max_concurrency:,.1f} sequences at once"),
        ("running at most", f"{plan.max_num_seqs:,} sequences, {plan.max_num_batched_tokens:,} tokens a step"),
    ]
