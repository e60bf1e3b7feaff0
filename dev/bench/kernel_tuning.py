"""Sweeps of the tile tables' candidates (`kernels.py --tune NAME`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import torch
from kernel_cases import Batch, Model, Run, decode_calls, make_batch, measure, prefill_calls, ragged, report, sets_for

from thranite_kernels.attention import paged_attention_work
from thranite_kernels.skinny_gemm import GemmScratch, skinny_gemm_launch, skinny_gemm_work
from thranite_kernels.target import DecodeConfig, GemmConfig, PrefillConfig
from thranite_kernels.work import Work


def attempt(name: str, body: Callable[[], tuple[float, Work]]) -> None:
    """Report one candidate, or why it does not run."""
    try:
        report(name, *body())
    except Exception as error:  # noqa: BLE001 - a candidate that does not compile or fit is a result
        print(f"{name:58s} {type(error).__name__}: {str(error)[:90]!r}", flush=True)


def tune_decode(run: Run, model: Model) -> None:
    """Tiles, warps, stages and shares of the portable kernel at one long row, a middling batch and a large one, in
    pages that Hopper's does not take."""
    configs = [(32, 4, 4, 4, 2), (64, 4, 2, 4, 2), (64, 4, 3, 1, 2), (64, 4, 3, 2, 2), (64, 4, 3, 3, 2),
               (64, 4, 3, 6, 2), (64, 4, 4, 2, 2), (64, 8, 3, 3, 2), (64, 2, 3, 3, 2), (128, 4, 3, 1, 1),
               (128, 8, 2, 2, 1), (128, 8, 3, 1, 1)]  # fmt: skip
    shape = (model.heads, model.kv_heads, model.head_dim)
    for rows, context in ((1, 1024), (1, 32768), (64, 600), (256, 600)):
        lengths = ragged(rows, context)
        work = paged_attention_work([1] * rows, lengths, *shape)
        batches = [make_batch(run, [1] * rows, lengths, *shape, 128) for _ in range(min(sets_for(run, work.bytes), 8))]
        for values in configs:
            body = partial(_decode_once, run, batches, work, DecodeConfig(*values))
            attempt(f"decode {model.name} {rows} x {context} {values}", body)


def _decode_once(run: Run, batches: list[Batch], work: Work, config: DecodeConfig) -> tuple[float, Work]:
    launches = [decode_calls(b, config=config) for b in batches]
    for plan, _ in launches:
        plan.run()
    return measure(run, [[attend] for _, attend in launches]), work


def tune_prefill(run: Run, model: Model) -> None:
    """Tiles, warps, stages and tensor maps; pages of 64, or of the tile where it is larger."""
    configs = [(128, 64, 8, 3, True), (128, 64, 8, 2, True), (128, 64, 8, 4, True), (128, 64, 8, 3, False),
               (64, 64, 4, 3, True), (64, 64, 4, 2, True), (128, 128, 8, 2, True), (256, 64, 16, 2, True),
               (128, 32, 8, 4, True)]  # fmt: skip
    for rows, tokens in ((8, 2048), (1, 16384)):
        for values in configs:
            body = partial(_prefill_once, run, model, rows, tokens, PrefillConfig(*values))
            attempt(f"prefill {rows} x {tokens} {values}", body)


def _prefill_once(run: Run, model: Model, rows: int, tokens: int, config: PrefillConfig) -> tuple[float, Work]:
    shape = (model.heads, model.kv_heads, model.head_dim)
    batch = make_batch(run, [tokens] * rows, [tokens] * rows, *shape, max(64, config.tile))
    plan, attend = prefill_calls(batch, config=config)
    plan.run()
    work = paged_attention_work([tokens] * rows, [tokens] * rows, *shape)
    return measure(run, [[attend]] * 2, 10), work


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
                except Exception as error:  # noqa: BLE001 - as in `attempt`
                    print(f"{config}: {type(error).__name__}", flush=True)
            for seconds, config in sorted(results, key=lambda r: r[0])[:4]:
                report(f"{part} M{rows} {config.block_n},{config.block_k},{config.split_k},{config.num_warps},"
                       f"{config.num_stages}", seconds, work)  # fmt: skip
            report(f"{part} M{rows} cuBLAS", measure(run, [partial(torch.mm, x, w.T) for x, w in pairs]), work)


TUNERS = {"decode": tune_decode, "prefill": tune_prefill, "gemm": tune_gemm}
