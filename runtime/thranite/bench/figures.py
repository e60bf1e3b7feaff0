"""What one workload came to, as a line, a table row and a JSON record."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from thranite.bench.floors import REFERENCE_GPU
from thranite.bench.step_parts import StepParts
from thranite.bench.workloads import Workload

TABLE_WIDTH = 132
PLAIN, OPTIONS = "decode64", "decode64-options"  # the workloads whose ratio is the options' cost


@dataclass(frozen=True, slots=True)
class Figures:
    """`seconds` of each run. `floor_seconds` and `vllm` (in the workload's metric): None off the reference GPU.

    `start_seconds`: until the engine was ready, for the process's first model from exec on. `compiled`: kernels that
    Triton compiled during the runs; 0 is what a ready engine owes.
    """

    model: str
    workload: Workload
    seconds: tuple[float, ...]
    start_seconds: float
    floor_seconds: float | None
    vllm: float | None
    compiled: int = 0
    parts: StepParts | None = None

    @property
    def median_seconds(self) -> float:
        return statistics.median(self.seconds)

    @property
    def output_rate(self) -> float:
        """Output tokens a second."""
        return self.workload.output_tokens / self.median_seconds

    @property
    def total_rate(self) -> float:
        """Prompt and output tokens a second."""
        return (self.workload.prompt_tokens + self.workload.output_tokens) / self.median_seconds

    @property
    def step_ms(self) -> float:
        """Time divided by the longest output, so the prompts' part is in it."""
        return 1e3 * self.median_seconds / self.workload.longest_output

    @property
    def spread(self) -> float:
        """Slowest run over fastest, less one."""
        return max(self.seconds) / min(self.seconds) - 1

    @property
    def first_ratio(self) -> float:
        """First run over the median: above 1, something was not ready."""
        return self.seconds[0] / self.median_seconds

    @property
    def floor_ratio(self) -> float | None:
        """1 is as fast as memory and arithmetic allow."""
        return None if self.floor_seconds is None else self.floor_seconds / self.median_seconds

    @property
    def vllm_ratio(self) -> float | None:
        """Above 1 is faster than vLLM."""
        if self.vllm is None:
            return None
        own = {"output tok/s": self.output_rate, "total tok/s": self.total_rate, "ms/step": self.step_ms}
        value = own[self.workload.metric]
        return self.vllm / value if self.workload.metric == "ms/step" else value / self.vllm

    def line(self) -> str:
        return (
            f"{self.model} {self.workload.name}: {self.median_seconds:.2f} s, {self.output_rate:,.0f} output tok/s, "
            f"{self.total_rate:,.0f} total tok/s, {self.step_ms:.2f} ms/step"
            + (f"\n  {self.parts.line()}" if self.parts else "")
        )

    def record(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "workload": self.workload.name,
            "requests": self.workload.count,
            "prompt_tokens": self.workload.prompt_tokens,
            "output_tokens": self.workload.output_tokens,
            "seconds": list(self.seconds),
            "median_seconds": self.median_seconds,
            "spread": self.spread,
            "first_ratio": self.first_ratio,
            "compiled_kernels": self.compiled,
            "step_parts": None if self.parts is None else asdict(self.parts),
            "output_tokens_per_second": self.output_rate,
            "total_tokens_per_second": self.total_rate,
            "ms_per_step": self.step_ms,
            "start_seconds": self.start_seconds,
            "floor_seconds": self.floor_seconds,
            "floor_ratio": self.floor_ratio,
            "vllm_ratio": self.vllm_ratio,
        }


def show(figures: Sequence[Figures], machine: Mapping[str, str], starts: Mapping[str, str]) -> None:
    """The table, and below it what no column holds. `starts`: a line a model."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=", ".join(f"{key} {value}" for key, value in machine.items()))
    for name in ("model", "workload", "requests", "in", "out"):
        table.add_column(name, justify="left" if name in ("model", "workload") else "right")
    for name in ("seconds", "first", "spread", "output tok/s", "total tok/s", "ms/step", "of floor*", "of vLLM*"):
        table.add_column(name, justify="right")
    for item in figures:
        work = item.workload
        sizes = (str(work.count), f"{work.prompt_tokens:,}", f"{work.output_tokens:,}")
        times = (f"{item.median_seconds:.2f}", f"{item.first_ratio - 1:+.1%}", f"{item.spread:.1%}")
        rates = (f"{item.output_rate:,.0f}", f"{item.total_rate:,.0f}", f"{item.step_ms:.2f}")
        ratios = ("–" if ratio is None else f"{ratio:.2f}" for ratio in (item.floor_ratio, item.vllm_ratio))
        table.add_row(item.model, work.name, *sizes, *times, *rates, *ratios)
    console = Console(width=max(Console().width, TABLE_WIDTH))  # wrapped by a narrow terminal rather than cut off
    console.print(table)
    compiled = sum(item.compiled for item in figures)
    console.print(f"{compiled} kernels were compiled after Ready" + (": see above" if compiled else ""))
    for model, start in starts.items():
        console.print(f"{model}: {start}")
    for ratio in option_ratios(figures):
        console.print(ratio)
    show_parts(figures)
    console.print(f"* speed relative to the floor's and vLLM's on the reference GPU, an {REFERENCE_GPU}")


def option_ratios(figures: Sequence[Figures]) -> list[str]:
    """A line for each model that ran decode64 with and without every sampling option."""
    times = {(item.model, item.workload.name): item.step_ms for item in figures}
    return [
        f"{model}: every sampling option costs {times[model, OPTIONS] / times[model, PLAIN] - 1:+.1%} "
        f"({times[model, OPTIONS]:.2f} against {times[model, PLAIN]:.2f} ms/step)"
        for model in dict.fromkeys(item.model for item in figures)
        if (model, OPTIONS) in times and (model, PLAIN) in times
    ]


def show_parts(figures: Sequence[Figures]) -> None:
    """Milliseconds a step by part, of the rows that were profiled."""
    from rich.console import Console
    from rich.table import Table

    profiled = [(item, item.parts) for item in figures if item.parts is not None]
    if not profiled:
        return
    names = ("wall", "attention", "gemm", "sums", "sampler", "other", "idle", "host")
    table = Table(title="milliseconds a step; the host's time lies beside the device's")
    table.add_column("model")
    table.add_column("workload")
    for name in names:
        table.add_column(name, justify="right")
    for item, parts in profiled:
        table.add_row(item.model, item.workload.name, *(f"{getattr(parts, name):.3f}" for name in names))
    Console(width=max(Console().width, TABLE_WIDTH)).print(table)
