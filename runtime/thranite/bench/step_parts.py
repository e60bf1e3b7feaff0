"""Where a step's time goes on a GPU: host, attention, products, sums over ranks, sampler, the rest, and idle."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from thranite.bench.workloads import Workload

if TYPE_CHECKING:
    from thranite.llm import LLM

# Outputs of a profiled run are cut to this many tokens: a trace has some 300 kernels a step.
PROFILED_TOKENS = 48

# By the first pattern that a kernel's name matches. cuBLAS names its kernels nvjet, cutlass, gemm or gemv.
KINDS = (
    ("attention", re.compile(r"paged_decode|hopper_decode|paged_prefill|hopper_prefill|decode_plan|prefill_plan")),
    ("gemm", re.compile(r"nvjet|cutlass|gemm|gemv|xmma|skinny|splitK", re.IGNORECASE)),
    ("sums", re.compile(r"all_reduce|nccl")),
    ("sampler", re.compile(r"(alive|shape|peak|threshold|weigh|draw)_kernel|logprob")),
)


@dataclass(frozen=True, slots=True)
class Interval:
    """One kernel or copy on the device. Microseconds on the trace's clock."""

    name: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class StepParts:
    """Milliseconds a step, means over `steps`. The device's parts and `idle` add up to `wall`; `host` overlaps them."""

    steps: int
    wall: float
    host: float  # Python's time in the step loop
    attention: float
    gemm: float
    sums: float  # over ranks, with what is fused into them and the waiting for each other
    sampler: float
    other: float
    idle: float  # no kernel ran

    def line(self) -> str:
        named = ("attention", "gemm", "sums", "sampler", "other", "idle")
        shares = ", ".join(
            f"{name} {getattr(self, name):.3f} ({getattr(self, name) / self.wall:.0%})" for name in named
        )
        return f"{self.steps} steps of {self.wall:.3f} ms: {shares}; host {self.host:.3f}"


def kind_of(name: str) -> str:
    return next((kind for kind, pattern in KINDS if pattern.search(name)), "other")


def parts_of(intervals: Iterable[Interval], wall_seconds: float, host_seconds: float, steps: int) -> StepParts:
    """Sums by kind. Where kernels overlap, the time counts for the one that started first."""
    totals = dict.fromkeys([*(kind for kind, _ in KINDS), "other"], 0.0)
    covered = float("-inf")
    for interval in sorted(intervals, key=lambda item: item.start):
        totals[kind_of(interval.name)] += max(interval.end - max(interval.start, covered), 0.0)
        covered = max(covered, interval.end)
    each = {kind: micros / 1e3 / steps for kind, micros in totals.items()}
    wall = 1e3 * wall_seconds / steps
    return StepParts(steps, wall, 1e3 * host_seconds / steps, idle=max(wall - sum(each.values()), 0.0), **each)


def profile_run(llm: LLM, workload: Workload, run: int, trace: Path | None) -> StepParts:
    """One run of the workload with short outputs under torch's profiler; `trace` receives it for chrome://tracing."""
    import time

    from torch.profiler import ProfilerActivity, profile

    prompts, params = workload.batch(run, llm.info.vocab_size, most=PROFILED_TOKENS)
    before = llm.engine.stats()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        started = time.perf_counter()
        llm.generate(prompts, params)
        seconds = time.perf_counter() - started
    after = llm.engine.stats()
    if trace is not None:
        profiled.export_chrome_trace(str(trace))
    intervals = [
        Interval(event.name, event.time_range.start, event.time_range.end)
        for event in profiled.events() or ()
        if event.device_type.name == "CUDA"
    ]
    host = after.host_seconds_total - before.host_seconds_total
    return parts_of(intervals, seconds, host, after.steps_total - before.steps_total)
