"""Shapes, random batches and the stopwatch that the timings and sweeps of `kernels.py` share."""

from __future__ import annotations

import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "kernels"))

from thranite_kernels.launch import Launch, cdiv, int32
from thranite_kernels.paged_decode import DecodePlan, paged_decode_launch
from thranite_kernels.paged_prefill import PrefillPlan, kv_descriptor, paged_prefill_launch, plan_config
from thranite_kernels.target import DecodeConfig, PrefillConfig
from thranite_kernels.work import Work

BF16 = torch.bfloat16
ROTATE_BYTES = 256 << 20
"""Input sets together hold at least this much, several times the L2 of an H100 or H200."""
AHEAD = 2  # calls launched before the first of them has ended


@dataclass(frozen=True)
class Model:
    """The shapes that matter here."""

    name: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    qk_norm: bool

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(output, input) sizes of the fused linears of a layer."""
        qkv = (self.heads + 2 * self.kv_heads) * self.head_dim
        return {
            "qkv": (qkv, self.hidden),
            "o": (self.hidden, self.heads * self.head_dim),
            "gate_up": (2 * self.intermediate, self.hidden),
            "down": (self.hidden, self.intermediate),
        }


MODELS = [
    Model("llama-8b", 4096, 32, 8, 128, 14336, 128256, False),
    Model("qwen3-0.6b", 1024, 16, 8, 128, 3072, 151936, True),
]
TINY = Model("tiny", 64, 2, 1, 32, 96, 256, False)  # to try a script itself


@dataclass
class Run:
    """What the command line chose."""

    device: str
    only: str

    @property
    def cuda(self) -> bool:
        """Whether this is the real thing."""
        return self.device == "cuda"

    def wants(self, name: str) -> bool:
        """Whether `name` passes --only."""
        return self.only in name

    def randn(self, *shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
        """Random normal data; fp16 stands for bf16 in the interpreter, whose dot does not know bf16."""
        kind = torch.float16 if dtype == BF16 and not self.cuda else dtype
        return torch.randn(*shape, device=self.device, dtype=torch.float32 if not self.cuda else kind).to(kind)


@dataclass
class Batch:
    """Rows over a cache whose pages are shuffled."""

    q: torch.Tensor
    kv: torch.Tensor
    table: torch.Tensor
    slots: torch.Tensor
    cu: torch.Tensor
    contexts: torch.Tensor
    q_lens: list[int]
    lengths: list[int]


def make_batch(
    run: Run, q_lens: list[int], lengths: list[int], heads: int, kv_heads: int, dim: int, size: int
) -> Batch:
    """One row a length; row r is slot r."""
    blocks = [cdiv(c, size) for c in lengths]
    pages = sum(blocks) + 1
    order = (torch.randperm(pages - 1) + 1).to(torch.int32)
    table = torch.zeros(len(lengths), max(blocks), dtype=torch.int32)
    at = 0
    for row, count in enumerate(blocks):
        table[row, :count] = order[at : at + count]
        at += count
    return Batch(
        run.randn(sum(q_lens), heads, dim),
        run.randn(pages, 2, kv_heads, size, dim),
        table.to(run.device),
        torch.arange(len(lengths), dtype=torch.int32, device=run.device),
        int32(torch.tensor([0, *q_lens]).cumsum(0), run.device),
        int32(lengths, run.device),
        q_lens,
        lengths,
    )


def decode_calls(
    b: Batch, config: DecodeConfig | None = None, out: torch.Tensor | None = None
) -> tuple[Launch, Launch]:
    """Plan launch, attention launch."""
    max_q = max(b.q_lens)
    out = torch.empty_like(b.q) if out is None else out
    plan = DecodePlan.allocate(
        len(b.lengths), b.q.shape[1], b.kv.shape[2], b.q.shape[2], max_q=max_q,
        itemsize=b.q.itemsize, device=b.q.device, config=config,
    )  # fmt: skip
    first = plan.plan_launch(b.slots, b.contexts, b.cu if max_q > 1 else None)
    return first, paged_decode_launch(b.q, b.kv, b.table, plan, scale=None, softcap=0.0, sinks=None, out=out)


def prefill_calls(b: Batch, config: PrefillConfig | None = None) -> tuple[Launch, Launch]:
    """Plan launch, attention launch."""
    out = torch.empty_like(b.q)
    heads = b.q.shape[1]
    config = config or plan_config(b.kv, heads, b.q.dtype)
    plan = PrefillPlan.allocate(len(b.lengths), len(b.q), heads, b.kv.shape[2], config=config, device=b.q.device)
    first = plan.plan_launch(b.slots, b.contexts, b.cu)
    second = paged_prefill_launch(
        b.q, b.kv, b.table, plan, scale=None, window=0, softcap=0.0, sinks=None, out=out,
        descriptor=kv_descriptor(b.kv, plan.config),
    )  # fmt: skip
    return first, second


def _run_all(launches: Sequence[Launch]) -> None:
    for launch in launches:
        launch.run()


def measure(run: Run, sets: Sequence[Sequence[Launch] | Callable[[], object]], replays: int = 20) -> float:
    """Median seconds of one call, replayed from a graph of one call a set."""
    calls = [s if callable(s) else partial(_run_all, s) for s in sets]
    for call in calls[:2]:
        call()
    if not run.cuda:
        return 1.0
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    for _ in range(3):
        graph.replay()
    times = []
    for _ in range(replays):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / len(calls))
    return float(statistics.median(times))


def sustained(run: Run, call: Callable[[], object], seconds: float) -> float:
    """Seconds of one call among as many as fill the time."""
    waiting: deque[torch.cuda.Event] = deque()
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        call()
        count += 1
        if run.cuda:
            waiting.append(torch.cuda.Event())
            waiting[-1].record()
            if len(waiting) > AHEAD:
                waiting.popleft().synchronize()
    if run.cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) / count


def report(name: str, seconds: float, work: Work) -> None:
    """One line of the table."""
    floor = work.floor_seconds()
    print(
        f"{name:58s} {seconds * 1e6:9.1f} µs {work.bytes / seconds / 1e9:7.0f} GB/s "
        f"{work.flops / seconds / 1e12:6.1f} TF/s  floor {floor * 1e6:8.1f} µs  {floor / seconds:5.2f}",
        flush=True,
    )


def sets_for(run: Run, size: int) -> int:
    """How many input sets of `size` bytes to rotate over."""
    return max(2, min(64, cdiv(ROTATE_BYTES, max(size, 1)))) if run.cuda else 1


def ragged(rows: int, mean: int) -> list[int]:
    """Lengths spread evenly over half to three halves of the mean."""
    return [max(int(mean * (0.5 + (r + 0.5) / rows)), 1) for r in range(rows)] if rows > 1 else [mean]
