"""Times every kernel on one GPU, in minutes: python3 dev/bench/kernels.py [--tune NAME]

Prints time, bandwidth, rate and floor ÷ measured (floors at 4.3 TB/s and 780 TFLOP/s) at the shapes of llama-8b and
qwen3-0.6b; calls rotate over enough input sets to leave L2, and are replayed from a CUDA graph. `--tune` sweeps
candidates of one tile table instead. `--only TEXT` keeps what has TEXT in its name. `--device cpu` with
TRITON_INTERPRET=1 runs tiny shapes once, to try the script itself. `make gpu-test ROWS=kernels` says whether they are
right.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from itertools import product

import torch
from kernel_cases import MODELS, Model, Run, decode_calls, make_batch, measure, prefill_calls, ragged, report, sets_for
from kernel_tuning import TUNERS

from thranite_kernels.attention import paged_attention_work
from thranite_kernels.glu import glu_launch, glu_work
from thranite_kernels.launch import Launch, cdiv
from thranite_kernels.logprobs import logprobs, logprobs_work
from thranite_kernels.prepare_inputs import RowPlan, SlotState, StepInputs, prepare_inputs_launch, prepare_inputs_work
from thranite_kernels.rms_norm import rms_norm_launch, rms_norm_work
from thranite_kernels.rope_kv import rope_kv_launch, rope_kv_work
from thranite_kernels.sampler import SamplerScratch, SamplingState, sample_launches, sample_work
from thranite_kernels.shaping import RowMasks, ShapingState, shape_launches
from thranite_kernels.skinny_gemm import GemmScratch, skinny_gemm_launch, skinny_gemm_work
from thranite_kernels.work import Work


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
            for plan, _ in launches:
                plan.run()
            report(name, measure(run, [[attend] for _, attend in launches]), work)
            if model is MODELS[0] and context in (600, 1024):
                report(f"decode plan rows {rows}", measure(run, [[plan] for plan, _ in launches]), Work(64 * rows))
    for rows, tokens, context in [(8, 2048, 2048), (1, 16384, 16384), (1, 2048, 16384)] if run.cuda else [(1, 70, 70)]:
        name = f"prefill {model.name} {rows} x {tokens} of {context}"
        if run.wants(name):
            work = paged_attention_work([tokens] * rows, [context] * rows, *shape)
            plan, attend = prefill_calls(make_batch(run, [tokens] * rows, [context] * rows, *shape, 64))
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
            table = torch.randn(20480, dim, device=run.device)
            norm = run.randn(dim) if model.qk_norm else None
            positions = torch.randint(0, 20480, (tokens,), dtype=torch.int32, device=run.device)
            pages = cdiv(tokens, 64) + 1
            slots = torch.randperm(tokens, device=run.device) + 64
            sets = []
            for _ in range(sets_for(run, work.bytes)):
                qkv, kv = run.randn(tokens, (heads + 2 * kv_heads) * dim), run.randn(pages, 2, kv_heads, 64, dim)
                launch = rope_kv_launch(
                    qkv, kv, slots, positions, table, heads=heads, q_weight=norm, k_weight=norm, eps=1e-6,
                    one_plus=False, out=qkv.new_empty(tokens, heads, dim),
                )  # fmt: skip
                sets.append([launch])
            report(f"rope_kv {tail}", measure(run, sets), work)


def sampling_set(run: Run, model: Model, rows: int, kind: str) -> list[Launch]:
    """Launches of one step's sampling: greedy, plain, full (every option, greedy rows mixed in)."""
    full = kind == "full"
    state = SamplingState.allocate(rows, run.device)
    state.temperature.fill_(0.0 if kind == "greedy" else 0.6)
    if kind in ("full", "top_p"):
        state.top_p.fill_(0.9)
    logits = run.randn(rows, model.vocab)
    n = torch.arange(rows, dtype=torch.int32, device=run.device)
    launches: list[Launch] = []
    counts = None
    if full:
        state.top_k.fill_(50)
        state.min_p.fill_(0.05)
        state.temperature[::4] = 0.0
        shaping = ShapingState.allocate(rows, model.vocab, run.device, rows=rows)
        shaping.repetition.fill_(1.1)
        shaping.counts.row.copy_(n)
        shaped = torch.empty(logits.shape, dtype=torch.float32, device=run.device)
        masks = RowMasks.none(rows, model.vocab, run.device)
        launches += shape_launches(logits, shaping, n, n, masks, bans=False, out=shaped)
        logits, counts = shaped, shaping.counts
    return launches + sample_launches(
        logits, state, n, n, SamplerScratch.allocate(rows, model.vocab, run.device),
        filters=kind in ("full", "top_p"), last_token=n.clone(), counts=counts, out=n.clone(),
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
            report(name, measure(run, [partial(logprobs, logits, tokens, 5)] * 4), logprobs_work(rows, model.vocab))
    for rows in (1, 64, 1024) if run.cuda and model is MODELS[0] else ():
        name = f"prepare_inputs rows {rows}"
        if run.wants(name):
            n = torch.arange(rows, dtype=torch.int32, device="cuda")
            ones = torch.ones_like(n)
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
        report(f"{name} cuBLAS", measure(run, [partial(torch.mm, x, w.T) for x, w in pairs]), work)


def time_all(run: Run) -> None:
    """The whole table."""
    for model in MODELS:
        for section in (time_attention, time_step_parts, time_gemms, time_elementwise):
            section(run, model)
            if run.cuda:
                torch.cuda.empty_cache()


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", choices=sorted(TUNERS), help="sweep one table's candidates, and time nothing else")
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
    if options.tune:
        TUNERS[options.tune](run, next(m for m in MODELS if m.name == options.model))
    else:
        time_all(run)
    print(f"{time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
