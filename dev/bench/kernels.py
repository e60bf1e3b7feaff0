"""Checks and times every kernel on one GPU, in minutes: python3 dev/bench/kernels.py [--check] [--time] [--tune NAME]

`--check` compares each kernel with its fp64 reference on odd shapes. `--time` prints time, bandwidth, rate and the ratio
floor ÷ measured (floors at 4.3 TB/s and 780 TFLOP/s) at the shapes of llama-8b and qwen3-0.6b; calls rotate over
enough input sets to leave L2, and are replayed from a CUDA graph. `--tune` sweeps candidates of one tile table.
Without options it checks, then times. `--only TEXT` keeps what has TEXT in its name. `--device cpu` with
TRITON_INTERPRET=1 runs tiny shapes once, to try the script itself.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "kernels"))

from thranite_kernels.attention import paged_attention_reference, paged_attention_work
from thranite_kernels.glu import glu_launch, glu_reference, glu_work
from thranite_kernels.launch import Launch, cdiv, int32
from thranite_kernels.logprobs import logprobs, logprobs_reference, logprobs_work
from thranite_kernels.paged_decode import DecodePlan, paged_decode_launch
from thranite_kernels.paged_prefill import PrefillPlan, kv_descriptor, paged_prefill_launch
from thranite_kernels.prepare_inputs import RowPlan, SlotState, StepInputs, prepare_inputs_launch, prepare_inputs_work
from thranite_kernels.rms_norm import rms_norm_launch, rms_norm_reference, rms_norm_work
from thranite_kernels.rng import random_bits, random_bits_reference
from thranite_kernels.rope_kv import rope_kv_launch, rope_kv_reference, rope_kv_work
from thranite_kernels.sampler import SamplerScratch, SamplingState, sample_launches, sample_reference, sample_work
from thranite_kernels.skinny_gemm import GemmScratch, skinny_gemm_launch, skinny_gemm_reference, skinny_gemm_work
from thranite_kernels.target import DecodeConfig, GemmConfig, PrefillConfig
from thranite_kernels.testing import assert_close
from thranite_kernels.work import Work

BF16 = torch.bfloat16
ROTATE_BYTES = 256 << 20
"""Input sets together hold at least this much, several times the L2 of an H100 or H200."""


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
    run: Run, q_lens: list[int], lengths: list[int], heads: int, kv_heads: int, dim: int, size: int,
    dtype: torch.dtype = BF16,
) -> Batch:  # fmt: skip
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
        run.randn(sum(q_lens), heads, dim, dtype=dtype),
        run.randn(pages, 2, kv_heads, size, dim, dtype=dtype),
        table.to(run.device),
        torch.arange(len(lengths), dtype=torch.int32, device=run.device),
        int32(torch.tensor([0, *q_lens]).cumsum(0), run.device),
        int32(lengths, run.device),
        q_lens,
        lengths,
    )


def decode_calls(
    b: Batch, window: int = 0, softcap: float = 0.0, sinks: torch.Tensor | None = None,
    config: DecodeConfig | None = None, out: torch.Tensor | None = None,
) -> tuple[Launch, Launch, torch.Tensor]:  # fmt: skip
    """Plan launch, attention launch, output."""
    max_q = max(b.q_lens)
    out = torch.full_like(b.q, float("nan")) if out is None else out
    plan = DecodePlan.allocate(
        len(b.lengths), b.q.shape[1], b.kv.shape[2], b.q.shape[2], max_q=max_q, window=window,
        itemsize=b.q.itemsize, device=b.q.device, config=config,
    )  # fmt: skip
    first = plan.plan_launch(b.slots, b.contexts, b.cu if max_q > 1 else None)
    second = paged_decode_launch(b.q, b.kv, b.table, plan, scale=None, softcap=softcap, sinks=sinks, out=out)
    return first, second, out


def prefill_calls(
    b: Batch, window: int = 0, softcap: float = 0.0, sinks: torch.Tensor | None = None,
    config: PrefillConfig | None = None, specialize: bool = False,
) -> tuple[Launch, Launch, torch.Tensor]:  # fmt: skip
    """Plan launch, attention launch, output."""
    out = torch.full_like(b.q, float("nan"))
    plan = PrefillPlan.allocate(
        len(b.lengths), b.q.shape[0], b.q.shape[1], b.kv.shape[2], b.q.shape[2], itemsize=b.q.itemsize,
        device=b.q.device, config=config,
    )  # fmt: skip
    first = plan.plan_launch(b.slots, b.contexts, b.cu)
    second = paged_prefill_launch(
        b.q, b.kv, b.table, plan, scale=None, window=window, softcap=softcap, sinks=sinks, out=out,
        descriptor=kv_descriptor(b.kv, plan.config), specialize=specialize,
    )  # fmt: skip
    return first, second, out


# ---------------------------------------------------------------------------------------------------------- checks


def attention_checks(run: Run) -> Iterator[tuple[str, Callable[[], None]]]:
    """Odd shapes: (heads, kv heads, head size, page size, window, softcap, sinks, queries a row, dtype)."""
    cases = [
        (32, 8, 128, 64, 0, 0.0, False, 1, BF16),
        (16, 8, 128, 16, 300, 0.0, False, 1, BF16),
        (8, 4, 256, 32, 100, 50.0, False, 1, BF16),
        (64, 8, 64, 128, 128, 0.0, True, 1, BF16),
        (9, 3, 80, 16, 0, 0.0, False, 1, BF16),
        (6, 1, 96, 64, 0, 0.0, True, 5, BF16),
        (16, 1, 112, 16, 70, 20.0, True, 8, BF16),
        (7, 7, 160, 32, 0, 0.0, False, 1, BF16),
        (12, 2, 192, 64, 0, 0.0, False, 3, BF16),
        (9, 3, 64, 16, 0, 0.0, False, 1, torch.float32),
        (8, 2, 128, 64, 50, 30.0, True, 4, torch.float32),
    ]
    for heads, kv_heads, dim, size, window, softcap, sink, max_q, dtype in cases:
        name = f"H{heads}/{kv_heads} D{dim} page {size} w{window} cap{softcap:g} sink{sink:d} q{max_q} {dtype}"

        def check(prefill: bool, case: tuple = (heads, kv_heads, dim, size, window, softcap, sink, max_q, dtype)) -> None:
            heads, kv_heads, dim, size, window, softcap, sink, max_q, dtype = case
            lengths = [1, 63, 64, 65, 700, 1023, 2500, 17, 129] if run.cuda else [1, 33, 40]
            if prefill:
                q_lens = [min(n, c) for n, c in zip([1, 63, 1, 40, 333, 1023, 700, 2, 128], lengths, strict=False)]
            else:
                q_lens = [min(1 + r % max_q, c) for r, c in enumerate(lengths)]
                q_lens[-1] = min(max_q, lengths[-1])
            b = make_batch(run, q_lens, lengths, heads, kv_heads, dim, size, dtype)
            sinks = torch.randn(heads, device=run.device) if sink else None
            plan, attend, out = (prefill_calls if prefill else decode_calls)(b, window, softcap, sinks)
            plan.run()
            attend.run()
            expected = paged_attention_reference(
                b.q, b.kv, b.table, b.slots, b.cu, b.contexts, window=window, softcap=softcap, sinks=sinks
            )
            assert_close(out, expected)

        yield f"decode {name}", lambda check=check: check(False)
        yield f"prefill {name}", lambda check=check: check(True)


def other_checks(run: Run) -> Iterator[tuple[str, Callable[[], None]]]:
    """Everything that is not attention."""

    def norm() -> None:
        for rows, width in ((7, 431), (33, 4096), (5, 16384)) if run.cuda else ((3, 431),):
            x, stream, weight = run.randn(rows, width), run.randn(rows, width), run.randn(width)
            expected, added = rms_norm_reference(x, weight, residual=stream, one_plus=True)
            out = torch.full_like(x, float("nan"))
            rms_norm_launch(x, weight, 1e-6, residual=stream, one_plus=True, out=out).run()
            assert_close(out, expected)
            assert added is not None
            assert_close(stream, added, rms=0.0 if run.cuda else None, peak=0.0 if run.cuda else None)

    def activation() -> None:
        for kind in ("silu", "gelu", "gelu_tanh"):
            x = run.randn(13, 2 * 1431)
            out = x.new_full((13, 1431), float("nan"))
            glu_launch(x, kind, out=out).run()
            assert_close(out, glu_reference(x, kind))

    def rope() -> None:
        for tokens, heads, kv_heads, dim, rotary in ((3, 9, 3, 80, 80), (777, 16, 8, 128, 64), (600, 6, 1, 96, 96)):
            tokens = tokens if run.cuda else 3
            qkv, kv = run.randn(tokens, (heads + 2 * kv_heads) * dim), run.randn(60, 2, kv_heads, 16, dim)
            slots = torch.randperm(59 * 16, device=run.device)[:tokens] + 16
            positions = torch.randint(0, 5000, (tokens,), dtype=torch.int32, device=run.device)
            table, w = torch.randn(5000, rotary, device=run.device), run.randn(dim)
            expected = rope_kv_reference(qkv, kv, slots, positions, table, heads=heads, q_weight=w, k_weight=w)
            out = qkv.new_full((tokens, heads, dim), float("nan"))
            rope_kv_launch(
                qkv, kv, slots, positions, table, heads=heads, q_weight=w, k_weight=w, eps=1e-6, one_plus=False, out=out
            ).run()
            assert_close(out, expected[0])
            assert_close(kv, expected[1])

    def sampler() -> None:
        rows, vocab = (22, 128256) if run.cuda else (3, 5000)
        state = SamplingState.allocate(rows, run.device, vocab=vocab)
        for r in range(rows):
            state.temperature[r] = [0.6, 0.0, 1.0, 50.0][r % 4]
            state.top_k[r] = [0, 50, 1, 9000][(r // 2) % 4]
            state.top_p[r] = [1.0, 0.9, 0.5][r % 3]
            state.min_p[r] = [0.0, 0.05][(r // 4) % 2]
            state.repetition[r] = [1.0, 1.1][r % 2]
            state.seed[r] = r * 77
        assert state.counts is not None
        state.counts.copy_(torch.rand(rows, vocab, device=run.device) < 0.1)
        logits = run.randn(rows, vocab) * 3
        slots, positions = torch.arange(rows, dtype=torch.int32, device=run.device), int32(list(range(rows)), run.device)
        expected = sample_reference(logits, state, slots, positions)
        scratch, out = SamplerScratch.allocate(rows, vocab, run.device), torch.full_like(slots, -1)
        launches = sample_launches(
            logits, state, slots, positions, scratch, bitmask=None, mask_index=None, filters=True, last_token=None,
            out=out,
        )  # fmt: skip
        for launch in launches:
            launch.run()
        same = int((out.cpu() == expected.cpu()).sum())
        assert same >= rows - (1 if run.cuda else 0), f"{same} of {rows} tokens as the float64 reference"

    def bits() -> None:
        seeds, ints = torch.tensor([5, -9], device=run.device), int32([3, 70000], run.device)
        expected = random_bits_reference([5, -9], [3, 70000], [3, 70000], torch.arange(5000))
        assert torch.equal(random_bits(seeds, ints, ints, 5000).cpu(), expected)

    def probabilities() -> None:
        logits = run.randn(9, 151936 if run.cuda else 5000)
        tokens = torch.arange(9, dtype=torch.int32, device=run.device) * 100
        actual, expected = logprobs(logits, tokens, 20), logprobs_reference(logits, tokens, 20)
        assert torch.equal(actual.top_ids[:, :20].long(), expected.top_ids)
        assert_close(actual.chosen, expected.chosen)

    def gemm() -> None:
        for rows, width, depth in product((1, 2, 8, 16), (70, 1024), (320, 3072)) if run.cuda else ((2, 70, 320),):
            x, w = run.randn(rows, depth), run.randn(width, depth)
            out = x.new_full((rows, width), float("nan"))
            skinny_gemm_launch(x, w, GemmScratch.allocate(width, run.device), bias=w[:, 0].contiguous(), out=out).run()
            assert_close(out, skinny_gemm_reference(x, w, w[:, 0]))

    yield from {"rms_norm": norm, "glu": activation, "rope_kv": rope, "sampler": sampler, "random_bits": bits,
                "logprobs": probabilities, "skinny_gemm": gemm}.items()  # fmt: skip


def check_all(run: Run) -> int:
    """Run every check; returns the number that failed."""
    failed = 0
    for make in (other_checks, attention_checks):
        for name, check in make(run):
            if not run.wants(name):
                continue
            torch.manual_seed(0)
            try:
                check()
                print(f"ok    {name}", flush=True)
            except Exception as error:
                failed += 1
                print(f"FAIL  {name}: {type(error).__name__}: {str(error)[:600]}", flush=True)
                if "CUDA" in str(error) and "out of memory" not in str(error):
                    raise
    print(f"{failed} checks failed", flush=True)
    return failed


# --------------------------------------------------------------------------------------------------------- timings


def measure(run: Run, sets: list[list[Launch]] | list[Callable[[], object]], replays: int = 20) -> float:
    """Median seconds of one call, replayed from a graph of one call a set."""
    calls = [(lambda s=s: [x.run() for x in s]) if isinstance(s, list) else s for s in sets]
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
    return statistics.median(times)


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


def time_attention(run: Run, model: Model) -> None:
    """Decode at several batches and contexts, prefill at 2k and 16k."""
    shape = (model.heads, model.kv_heads, model.head_dim)
    grid = [(1, 256), (1, 1024), (1, 32768), (8, 1024), (64, 256), (64, 1024), (256, 600), (1024, 600)]
    for rows, context in grid if run.cuda else [(2, 70)]:
        name = f"decode {model.name} rows {rows} context {context}"
        if run.wants(name):
            lengths = ragged(rows, context)
            work = paged_attention_work([1] * rows, lengths, *shape)
            batches = [make_batch(run, [1] * rows, lengths, *shape, 64) for _ in range(sets_for(run, work.bytes))]
            launches = [decode_calls(b) for b in batches]
            for plan, _, _ in launches:
                plan.run()
            report(name, measure(run, [[attend] for _, attend, _ in launches]), work)
            if model is MODELS[0] and context in (600, 1024):
                report(f"decode plan rows {rows}", measure(run, [[plan] for plan, _, _ in launches]), Work(64 * rows))
    for rows, tokens, context in [(8, 2048, 2048), (1, 16384, 16384), (1, 2048, 16384)] if run.cuda else [(1, 70, 70)]:
        name = f"prefill {model.name} {rows} x {tokens} of {context}"
        if run.wants(name):
            work = paged_attention_work([tokens] * rows, [context] * rows, *shape)
            plan, attend, _ = prefill_calls(make_batch(run, [tokens] * rows, [context] * rows, *shape, 64))
            plan.run()
            report(name, measure(run, [[attend]] * 2, 10), work)


def time_elementwise(run: Run, model: Model) -> None:
    """rms_norm with residual, glu and rope_kv from 1 to 16,384 tokens."""
    heads, kv_heads, dim = model.heads, model.kv_heads, model.head_dim
    for tokens in (1, 8, 64, 256, 1024, 2048, 16384) if run.cuda else (2,):
        tail = f"{model.name} tokens {tokens}"
        if run.wants(f"rms_norm {tail}"):
            work = rms_norm_work(tokens, model.hidden, residual=True)
            weight = run.randn(model.hidden)
            sets = [
                [rms_norm_launch(x, weight, 1e-6, residual=r, one_plus=False, out=torch.empty_like(x))]
                for x, r in ((run.randn(tokens, model.hidden), run.randn(tokens, model.hidden))
                             for _ in range(sets_for(run, work.bytes)))
            ]  # fmt: skip
            report(f"rms_norm {tail}", measure(run, sets), work)
        if run.wants(f"glu {tail}"):
            work = glu_work(tokens, model.intermediate)
            sets = [
                [glu_launch(x, "silu", out=x.new_empty(tokens, model.intermediate))]
                for x in (run.randn(tokens, 2 * model.intermediate) for _ in range(sets_for(run, work.bytes)))
            ]
            report(f"glu {tail}", measure(run, sets), work)
        if run.wants(f"rope_kv {tail}"):
            work = rope_kv_work(tokens, heads, kv_heads, dim)
            table, weight = torch.randn(20480, dim, device=run.device), run.randn(dim) if model.qk_norm else None
            positions = torch.randint(0, 20480, (tokens,), dtype=torch.int32, device=run.device)
            pages = cdiv(tokens, 64) + 1
            slots = torch.randperm(tokens, device=run.device) + 64
            sets = []
            for _ in range(sets_for(run, work.bytes)):
                qkv, kv = run.randn(tokens, (heads + 2 * kv_heads) * dim), run.randn(pages, 2, kv_heads, 64, dim)
                launch = rope_kv_launch(
                    qkv, kv, slots, positions, table, heads=heads, q_weight=weight, k_weight=weight, eps=1e-6,
                    one_plus=False, out=qkv.new_empty(tokens, heads, dim),
                )  # fmt: skip
                sets.append([launch])
            report(f"rope_kv {tail}", measure(run, sets), work)


def sampling_set(run: Run, model: Model, rows: int, kind: str) -> list[Launch]:
    """Launches of one step's sampling: greedy, plain, full (every option, greedy rows mixed in)."""
    full = kind == "full"
    state = SamplingState.allocate(rows, run.device, vocab=model.vocab if full else None)
    state.temperature.fill_(0.0 if kind == "greedy" else 0.6)
    if kind in ("full", "top_p"):
        state.top_p.fill_(0.9)
    if full:
        state.top_k.fill_(50)
        state.min_p.fill_(0.05)
        state.repetition.fill_(1.1)
        state.temperature[::4] = 0.0
    n = torch.arange(rows, dtype=torch.int32, device=run.device)
    return sample_launches(
        run.randn(rows, model.vocab), state, n, n, SamplerScratch.allocate(rows, model.vocab, run.device), bitmask=None,
        mask_index=None, filters=kind in ("full", "top_p"), last_token=n.clone(), out=n.clone(),
    )  # fmt: skip


def time_step_parts(run: Run, model: Model) -> None:
    """Sampler, log-probabilities and input preparation."""
    for rows, kind in product((1, 64, 256, 1024) if run.cuda else (2,), ("greedy", "plain", "full", "top_p")):
        name = f"sample {kind} {model.name} rows {rows}"
        if run.wants(name):
            work = sample_work(rows, model.vocab)
            count = 2 if kind == "full" else min(sets_for(run, work.bytes), 8)
            report(name, measure(run, [sampling_set(run, model, rows, kind) for _ in range(count)]), work)
    for rows in (1, 64) if run.cuda else (2,):
        name = f"logprobs 5 {model.name} rows {rows}"
        if run.wants(name):
            logits, tokens = run.randn(rows, model.vocab), torch.zeros(rows, dtype=torch.int32, device=run.device)
            report(name, measure(run, [lambda: logprobs(logits, tokens, 5)] * 4), logprobs_work(rows, model.vocab))
    for rows in (1, 64, 1024) if run.cuda and model is MODELS[0] else ():
        name = f"prepare_inputs rows {rows}"
        if run.wants(name):
            n, ones = torch.arange(rows, dtype=torch.int32, device="cuda"), torch.ones(rows, dtype=torch.int32, device="cuda")
            table = torch.ones(rows, 320, dtype=torch.int32, device="cuda")
            launch = prepare_inputs_launch(
                SlotState(n, n, table), RowPlan(n, ones, ones, n, n), StepInputs.allocate(rows, rows, "cuda"),
                block_size=64, advance=False,
            )  # fmt: skip
            report(name, measure(run, [[launch]] * 8), prepare_inputs_work(rows, rows))


def time_gemms(run: Run, model: Model) -> None:
    """skinny_gemm beside cuBLAS on the linears of a layer."""
    for (part, (width, depth)), rows in product(model.linears.items(), (1, 2, 4, 8, 16) if run.cuda else (1,)):
        name = f"gemm {part} {model.name} M{rows}"
        if not run.wants(name):
            continue
        work = skinny_gemm_work(rows, width, depth)
        scratch = GemmScratch.allocate(width, run.device)
        pairs = [(run.randn(rows, depth), run.randn(width, depth)) for _ in range(sets_for(run, work.bytes))]
        ours = [[skinny_gemm_launch(x, w, scratch, bias=None, out=x.new_empty(rows, width))] for x, w in pairs]
        report(f"{name} ours", measure(run, ours), work)
        report(f"{name} cuBLAS", measure(run, [lambda x=x, w=w: x @ w.T for x, w in pairs]), work)


def time_all(run: Run) -> None:
    """The whole table."""
    for model in MODELS:
        for section in (time_attention, time_step_parts, time_gemms, time_elementwise):
            section(run, model)
            if run.cuda:
                torch.cuda.empty_cache()


# ---------------------------------------------------------------------------------------------------------- tuning


def attempt(name: str, body: Callable[[], tuple[float, Work]]) -> None:
    """Report one candidate, or why it does not run."""
    try:
        report(name, *body())
    except Exception as error:
        print(f"{name:58s} {type(error).__name__}: {str(error).splitlines()[0][:90] if str(error) else ''}", flush=True)


def tune_decode(run: Run, model: Model) -> None:
    """Tiles, warps, stages and shares at one long row, a middling batch and a large one."""
    configs = [(32, 4, 4, 4, 2), (64, 4, 2, 4, 2), (64, 4, 3, 1, 2), (64, 4, 3, 2, 2), (64, 4, 3, 3, 2), (64, 4, 3, 6, 2),
               (64, 4, 4, 2, 2), (64, 8, 3, 3, 2), (64, 2, 3, 3, 2), (128, 4, 3, 1, 1), (128, 8, 2, 2, 1),
               (128, 8, 3, 1, 1)]  # fmt: skip
    shape = (model.heads, model.kv_heads, model.head_dim)
    for rows, context in ((1, 1024), (1, 32768), (64, 600), (256, 600)):
        lengths = ragged(rows, context)
        work = paged_attention_work([1] * rows, lengths, *shape)
        batches = [make_batch(run, [1] * rows, lengths, *shape, 64) for _ in range(min(sets_for(run, work.bytes), 8))]
        for values in configs:

            def body(config: DecodeConfig = DecodeConfig(*values)) -> tuple[float, Work]:
                launches = [decode_calls(b, config=config) for b in batches]
                for plan, _, _ in launches:
                    plan.run()
                return measure(run, [[attend] for _, attend, _ in launches]), work

            attempt(f"decode {model.name} {rows} x {context} {values}", body)


def tune_prefill(run: Run, model: Model) -> None:
    """Tiles, warps, stages, tensor maps and warp specialisation, pages of 64 and 128."""
    configs = [(128, 64, 8, 3, True), (128, 64, 8, 2, True), (128, 64, 8, 4, True), (128, 64, 8, 3, False),
               (64, 64, 4, 3, True), (64, 64, 4, 2, True), (128, 128, 8, 2, True), (256, 64, 16, 2, True),
               (128, 32, 8, 4, True)]  # fmt: skip
    shape = (model.heads, model.kv_heads, model.head_dim)
    for rows, tokens in ((8, 2048), (1, 16384)):
        work = paged_attention_work([tokens] * rows, [tokens] * rows, *shape)
        for values, specialize in product(configs, (False, True)):
            if specialize and values not in (configs[0], configs[4], configs[6]):
                continue

            def body(config: PrefillConfig = PrefillConfig(*values), specialize: bool = specialize) -> tuple[float, Work]:
                batch = make_batch(run, [tokens] * rows, [tokens] * rows, *shape, max(64, config.tile))
                plan, attend, _ = prefill_calls(batch, config=config, specialize=specialize)
                plan.run()
                return measure(run, [[attend]] * 2, 10), work

            attempt(f"prefill {rows} x {tokens} {values} ws{specialize:d}", body)


def tune_gemm(run: Run, model: Model) -> None:
    """Columns, depth, splits and warps for one row and for eight."""
    one = [GemmConfig(n, k, s, w, 1, dot=False) for n, k, s, w in
           product((2, 4, 8), (512, 1024), (1, 2, 4), (2, 4, 8)) if 256 <= n * k // w <= 4096]  # fmt: skip
    many = [GemmConfig(n, k, s, w, st) for n, k, s, w, st in
            product((16, 32), (128, 256), (1, 2, 4), (2, 4), (4, 6)) if w * 8 <= n]  # fmt: skip
    for part, (width, depth) in model.linears.items():
        for rows, configs in ((1, one), (8, many)):
            work = skinny_gemm_work(rows, width, depth)
            count = min(sets_for(run, work.bytes), 12)
            pairs = [(run.randn(rows, depth), run.randn(width, depth)) for _ in range(count)]
            scratch = GemmScratch.allocate(width, run.device)
            results = []
            for config in configs:
                if config.block_k > depth or config.split_k * config.block_k > depth:
                    continue
                launches = [
                    [skinny_gemm_launch(x, w, scratch, bias=None, out=x.new_empty(rows, width), config=config)]
                    for x, w in pairs
                ]
                try:
                    results.append((measure(run, launches, 10), config))
                except Exception as error:
                    print(f"{config}: {type(error).__name__}", flush=True)
            for seconds, config in sorted(results, key=lambda r: r[0])[:4]:
                report(f"{part} M{rows} {config.block_n},{config.block_k},{config.split_k},{config.num_warps},"
                       f"{config.num_stages}", seconds, work)  # fmt: skip
            report(f"{part} M{rows} cuBLAS", measure(run, [lambda x=x, w=w: x @ w.T for x, w in pairs]), work)


TUNERS = {"decode": tune_decode, "prefill": tune_prefill, "gemm": tune_gemm}


def main() -> int:
    """Parse, run, and fail if a check failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with references")
    parser.add_argument("--time", action="store_true", help="print the table of timings")
    parser.add_argument("--tune", choices=sorted(TUNERS), help="sweep one table's candidates")
    parser.add_argument("--model", choices=[m.name for m in MODELS], default="llama-8b", help="shapes for --tune")
    parser.add_argument("--only", default="", metavar="TEXT", help="only what has TEXT in its name")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    options = parser.parse_args()
    run = Run(options.device, options.only)
    torch.set_grad_enabled(False)
    start = time.perf_counter()
    if run.cuda:
        torch.backends.cuda.matmul.allow_tf32 = False
        print(torch.cuda.get_device_name(), "torch", torch.__version__, flush=True)
    everything = not (options.check or options.time or options.tune)
    failed = check_all(run) if options.check or everything else 0
    if options.tune:
        TUNERS[options.tune](run, next(m for m in MODELS if m.name == options.model))
    if options.time or everything:
        time_all(run)
    print(f"{time.perf_counter() - start:.0f} s", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
