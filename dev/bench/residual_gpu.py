"""A large step of llama-8b on one GPU: products that add to the residual stream, or norms that do.

    PYTHONPATH=operator:runtime:kernels python3 dev/bench/residual_gpu.py [--rows 1024,2048,4096,8192] [--seconds 5]

First eight layers of the decoder itself, eager and without attention (a fixed tensor stands for what it gives), by
cuBLAS's rule and with products chosen by time: microseconds a layer, the two ways in turn. Then a layer's four products
of `--whole` rows in one call each and in calls of 4,096 and 2,048 rows, `--seconds` of each on end, as a GPU at its
power limit lowers its clock. Then the kernels between the products against their bytes at `--bandwidth`. `--device cpu`
runs tiny shapes for moments, to try the script itself.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from statistics import fmean
from typing import cast
from unittest import mock

import torch
from board_clock import Clock
from kernel_cases import MODELS, Run, measure, sets_for, sustained
from torch import Tensor

from thranite.attention.base import AttentionBatch
from thranite.bench.shapes import LLAMA_8B
from thranite.layers import dense as dense_module
from thranite.layers import linear as linear_module
from thranite.layers.dense import dense
from thranite.layers.linear import Linear
from thranite.layers.tuned_products import tuning
from thranite.loader.checkpoint import load_model
from thranite.models.decoder import Decoder, DecoderLayer
from thranite.models.registry import load_spec
from thranite_kernels.glu import glu_launch, glu_work
from thranite_kernels.launch import Launch, cdiv
from thranite_kernels.rms_norm import rms_norm_launch, rms_norm_work
from thranite_kernels.rope_kv import rope_kv_launch, rope_kv_work
from thranite_kernels.work import Work

LAYERS = 8  # 3.5 GB of weights: none is still in the cache when its turn comes again
CHUNKS = (4096, 2048)
TURNS, TURN_SECONDS = 2, 0.3
BOUND = 3e-2  # relative RMS difference of hidden states in bf16
TINY = {**LLAMA_8B, "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16}  # fmt: skip
BATCH = cast(AttentionBatch, None)


class FixedAttention:
    """What it gives depends on nothing."""

    def __init__(self, heads: Tensor) -> None:
        self._heads = heads

    def attend(
        self, layer: int, qkv: Tensor, batch: AttentionBatch, q_norm: Tensor | None, k_norm: Tensor | None
    ) -> Tensor:
        return self._heads[: len(qkv)]


def never(x: Tensor, weight: Tensor, onto: Tensor | None = None) -> None:
    """In the place of `tuned_product`: everything is left to the rule."""


@contextmanager
def ways(*, adding: bool, tuned: bool) -> Iterator[None]:
    """Who adds, and who chooses the products' algorithms."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(linear_module, "ADDING_ROWS", 1 if adding else 1 << 30))
        if not tuned:
            stack.enter_context(mock.patch.object(dense_module, "tuned_product", never))
        yield


class Bench:
    """Eight layers and their inputs."""

    def __init__(self, run: Run, most: int) -> None:
        self.run, self.failed = run, 0
        config = {**(LLAMA_8B if run.cuda else TINY), "num_hidden_layers": LAYERS}
        spec = load_spec(config, dtype="bfloat16", max_model_len=2048)
        device = torch.device(run.device)
        self.model: Decoder = load_model(
            spec, None, dtype=torch.bfloat16, device=device, load_format="dummy", progress=None
        )
        self.layers = [cast(DecoderLayer, layer) for layer in self.model.layers]
        self.hidden = torch.randn(most, spec.hidden_size, device=device).to(torch.bfloat16)
        self.inner = torch.randn(most, spec.layers[0].intermediate_size, device=device).to(torch.bfloat16)
        self.ids = torch.arange(most, device=device) * 7919 % spec.vocab_size
        self.clock = Clock(run)

    def show_layers(self, rows: int) -> None:
        """The norms' and the products' additions in turn, first by cuBLAS's rule."""
        attention = FixedAttention(self.hidden)
        call = partial(self.model, self.ids[:rows], BATCH, attention)
        for tuned in (False, True):
            hidden = []
            for adding in (False, True):
                with ways(adding=adding, tuned=tuned), tuning():
                    hidden.append(call().float())
            difference = float((hidden[1] - hidden[0]).norm() / hidden[0].norm())
            del hidden
            times: dict[bool, list[float]] = {False: [], True: []}
            begin = time.perf_counter()
            for _ in range(TURNS):
                for adding, taken in times.items():
                    with ways(adding=adding, tuned=tuned):
                        taken.append(sustained(self.run, call, TURN_SECONDS if self.run.cuda else 0.01))
            before, after = (fmean(taken) / LAYERS * 1e6 for taken in times.values())
            print(
                f"{rows:6} rows, {'chosen by time' if tuned else 'by the rule':14}  norms add {before:7.1f}  products "
                f"add {after:7.1f} µs a layer  {after / before - 1:+.2%}  apart {difference:.1e}  "
                f"{self.clock.since(begin)}",
                flush=True,
            )
            if not difference < BOUND:
                self.failed += 1
                print(f"  the difference EXCEEDS {BOUND}")

    def show_chunks(self, rows: int, seconds: float) -> None:
        """The four products of all layers by the algorithms chosen for each number of rows."""
        flops = 0
        products: list[tuple[Tensor, Tensor]] = []
        for layer in self.layers:
            linears: list[tuple[Tensor, Linear]] = [
                (self.hidden, layer.attention.qkv), (self.hidden, layer.attention.out),
                (self.hidden, layer.mlp.gate_up), (self.inner, layer.mlp.down),
            ]  # fmt: skip
            products += [(x[:rows], linear.weight) for x, linear in linears]
            flops += sum(2 * rows * linear.weight.numel() for _, linear in linears)
        for chunk in (rows, *(size for size in CHUNKS if size < rows)):

            def call(size: int = chunk) -> None:
                for x, weight in products:
                    for part in x.split(size):
                        dense(part, weight)

            with tuning():
                call()
            begin = time.perf_counter()
            each = sustained(self.run, call, seconds)
            print(
                f"{rows:6} rows in calls of {chunk:5}: {each / LAYERS * 1e6:7.1f} µs a layer  "
                f"{flops / each / 1e12:6.1f} TF/s  {self.clock.since(begin + seconds / 4)}",
                flush=True,
            )


def show_kernels(run: Run, rows: int, bandwidth: float) -> None:
    """Those between the products, alone."""
    model = MODELS[0]
    hidden, heads, kv_heads, dim = model.hidden, model.heads, model.kv_heads, model.head_dim
    weight, table = run.randn(hidden), torch.randn(rows, dim, device=run.device)
    positions = torch.arange(rows, dtype=torch.int32, device=run.device)
    slots = torch.randperm(rows, device=run.device) + 64

    def norm(add: bool) -> Launch:
        x, stream = run.randn(rows, hidden), run.randn(rows, hidden) if add else None
        return rms_norm_launch(x, weight, 1e-5, residual=stream, one_plus=False, out=torch.empty_like(x))

    def activation() -> Launch:
        x = run.randn(rows, 2 * model.intermediate)
        return glu_launch(x, "silu", out=x.new_empty(rows, model.intermediate))

    def rope() -> Launch:
        qkv = run.randn(rows, (heads + 2 * kv_heads) * dim)
        cache = run.randn(cdiv(rows, 64) + 1, 2, kv_heads, 64, dim)
        return rope_kv_launch(
            qkv, cache, slots, positions, table, heads=heads, q_weight=None, k_weight=None, eps=1e-6, one_plus=False,
            out=qkv.new_empty(rows, heads, dim),
        )  # fmt: skip

    kernels: Sequence[tuple[str, Callable[[], Launch], Work]] = [
        ("rms_norm that adds", partial(norm, True), rms_norm_work(rows, hidden, residual=True)),
        ("rms_norm", partial(norm, False), rms_norm_work(rows, hidden)),
        ("glu", activation, glu_work(rows, model.intermediate)),
        ("rope_kv", rope, rope_kv_work(rows, heads, kv_heads, dim)),
    ]
    for name, make, work in kernels:
        seconds = measure(run, [[make()] for _ in range(sets_for(run, work.bytes))])
        floor = work.bytes / bandwidth
        print(f"{rows:6} rows {name:18} {seconds * 1e6:7.1f} µs, floor {floor * 1e6:6.1f}, {floor / seconds:.2f}")


def main() -> int:
    """Fails where the two ways differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1024,2048,4096,8192", help="comma-separated, of steps")
    parser.add_argument("--whole", type=int, default=8192, help="rows of the products that are cut, and of the kernels")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each way of cutting")
    parser.add_argument("--bandwidth", type=float, default=4.3, help="TB/s, read and written")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    options = parser.parse_args()
    run, rows = Run(options.device, ""), [int(count) for count in options.rows.split(",")]
    start = time.perf_counter()
    bench = Bench(run, max(*rows, options.whole))
    if run.cuda:
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    for count in rows:
        bench.show_layers(count)
    print(f"{time.perf_counter() - start:.0f} s", flush=True)
    bench.show_chunks(options.whole, options.seconds)
    if run.cuda:
        show_kernels(run, options.whole, options.bandwidth * 1e12)
    print(f"{bench.failed} wrong; {time.perf_counter() - start:.0f} s", flush=True)
    return int(bench.failed > 0)


if __name__ == "__main__":
    with torch.inference_mode():
        raise SystemExit(main())
