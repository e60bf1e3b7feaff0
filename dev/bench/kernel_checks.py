"""Every kernel against its reference on odd shapes (`kernels.py --check`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch
from kernel_cases import BF16, Run, decode_calls, make_batch, prefill_calls

from thranite_kernels.attention import paged_attention_reference
from thranite_kernels.glu import Activation, glu_launch, glu_reference
from thranite_kernels.launch import int32
from thranite_kernels.logprobs import logprobs, logprobs_reference
from thranite_kernels.rms_norm import rms_norm_launch, rms_norm_reference
from thranite_kernels.rng import random_bits, random_bits_reference
from thranite_kernels.rope_kv import rope_kv_launch, rope_kv_reference
from thranite_kernels.sampler import SamplerScratch, SamplingState, sample_launches, sample_reference
from thranite_kernels.shaping import RowMasks, ShapingState, shape, shape_reference
from thranite_kernels.skinny_gemm import GemmScratch, skinny_gemm_launch, skinny_gemm_reference
from thranite_kernels.testing import assert_close

AttentionCase = tuple[int, int, int, int, int, float, bool, int, torch.dtype]
"""Heads, kv heads, head size, page size, window, softcap, sinks, queries a row, dtype."""


def check_attention(run: Run, prefill: bool, case: AttentionCase) -> None:
    """One ragged batch through the plan and the attention kernel, into a poisoned output."""
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


def attention_checks(run: Run) -> Iterator[tuple[str, Callable[[], None]]]:
    """Odd shapes, decode and prefill."""
    cases: list[AttentionCase] = [
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
    for case in cases:
        heads, kv_heads, dim, size, window, softcap, sink, max_q, dtype = case
        name = f"H{heads}/{kv_heads} D{dim} page {size} w{window} cap{softcap:g} sink{sink:d} q{max_q} {dtype}"
        yield f"decode {name}", partial(check_attention, run, False, case)
        yield f"prefill {name}", partial(check_attention, run, True, case)


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
        kinds: tuple[Activation, ...] = ("silu", "gelu", "gelu_tanh")
        for kind in kinds:
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
        state = SamplingState.allocate(rows, run.device)
        shaping = ShapingState.allocate(rows, vocab, run.device, rows=rows)
        for r in range(rows):
            state.temperature[r] = [0.6, 0.0, 1.0, 50.0][r % 4]
            state.top_k[r] = [0, 50, 1, 9000][(r // 2) % 4]
            state.top_p[r] = [1.0, 0.9, 0.5][r % 3]
            state.min_p[r] = [0.0, 0.05][(r // 4) % 2]
            shaping.repetition[r] = [1.0, 1.1][r % 2]
            shaping.counts.row[r] = [-1, r][r % 2]
            state.seed[r] = r * 77
        shaping.counts.table.copy_(torch.rand(rows, vocab, device=run.device) < 0.1)
        logits = run.randn(rows, vocab) * 3
        slots = torch.arange(rows, dtype=torch.int32, device=run.device)
        positions = slots.clone()
        masks = RowMasks.none(rows, vocab, run.device)
        shaped = shape(logits, shaping, slots, positions, masks)
        assert torch.equal(shaped, shape_reference(logits, shaping, slots, positions, masks))
        expected = sample_reference(shaped, state, slots, positions)
        scratch, out = SamplerScratch.allocate(rows, vocab, run.device), torch.full_like(slots, -1)
        launches = sample_launches(
            shaped, state, slots, positions, scratch, filters=True, last_token=None, counts=None, out=out
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
