"""Decode attention of a model's layers on one GPU: `paged_decode` (old) beside `stream_decode` (new).

    PYTHONPATH=operator:runtime:kernels python3 dev/bench/stream_decode_gpu.py [--model llama-8b] [--rows 33,64]
        [--lengths ragged,200,600] [--between] [--sweep]

Microseconds a layer, of one CUDA graph of all layers, each with keys and values of its own as far as memory goes
("differ" says how many do), lists planned before, beside the floor: the bytes of keys and values at 4.3 TB/s. "plan"
is the launch that makes the lists, once a step. Before it is timed each shape is checked: every head of every row
against the old kernel and, for some rows, float64; twice for the same bits; among padding, which must change no bit and
stay unwritten; counters back at zero; and after the timing what the last layer's back-to-back launches left. The first
failure ends the run with 1. `--between` puts a norm that starts early before each layer, as an engine has other kernels
there; its own time, "norm alone", is in the figures then. `--sweep` times other tiles of the new kernel at a few of the
shapes, too.

`--device cpu` with TRITON_INTERPRET=1 checks tiny shapes, to try the script itself.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from os import cpu_count

import torch
from kernel_cases import MODELS, Model, Run, measure

from thranite.bench.shapes import SHAPES
from thranite_kernels.attention import paged_attention_reference
from thranite_kernels.launch import Launch, cdiv, int32
from thranite_kernels.paged_decode import DecodePlan, paged_decode_launch
from thranite_kernels.rms_norm import rms_norm_launch
from thranite_kernels.stream_decode import StreamDecodePlan, stream_decode_launch
from thranite_kernels.target import StreamDecodeConfig, stream_decode_config, target_of
from thranite_kernels.variant import Variant, compile_variant

PAGE, RATE = 64, 4.3e12  # tokens; bytes a second that a copy of an H200 moves
MEMORY_SHARE = 0.6  # of what is free, for keys and values
REPLAYS = 9
BOUND = 2e-2  # of a head's output: relative RMS error in bf16, where a lost tile of 25 would make 0.2
EXACT_ROWS = 6  # of a shape, against float64
ROWS = (33, 64, 128, 256, 512, 1000)
TINY = Model("tiny", 64, 4, 2, 64, 96, 256, False)
SWEEP_SHAPES = ((64, "ragged"), (256, "ragged"), (64, "200"), (256, "600"))
Plan = DecodePlan | StreamDecodePlan


def sweep(table: StreamDecodeConfig) -> dict[str, StreamDecodeConfig]:
    """What may be better than the table's: fewer programs, all rows cut, keys asked of L2 before the wait, larger or
    smaller tiles. The same tile and stages need no other compilation."""
    return {
        **{f"c={c}": replace(table, ctas_per_sm=c) for c in (1, 2, 3) if c != table.ctas_per_sm},
        "whole 1": replace(table, whole_tiles=1),
        "whole 8": replace(table, whole_tiles=8),
        "ahead 1": replace(table, ahead=1),
        "ahead 2": replace(table, ahead=2),
        "4 stages, c=2": replace(table, num_stages=4, ctas_per_sm=2),
        "32 keys, 6 stages, c=2": replace(table, tile=32, num_stages=6, ctas_per_sm=2, whole_tiles=8),
        "128 keys, c=1, 8 warps": replace(table, tile=128, ctas_per_sm=1, num_warps=8, whole_tiles=2),
    }


def lengths_of(kind: str, rows: int, most: int = 1600) -> list[int]:
    """Keys of each row: a number for all, or "ragged": uniform from 100 to 1,600."""
    drawn = random.Random(rows)
    return [drawn.randint(most // 16, most) if kind == "ragged" else int(kind) for _ in range(rows)]


class Memory:
    """Random keys and values that all shapes lie in."""

    def __init__(self, run: Run, model: Model, pages: int, layers: int) -> None:
        shape = (2, model.kv_heads, PAGE, model.head_dim)
        size = 2 * 2 * model.kv_heads * PAGE * model.head_dim
        if run.cuda:
            torch.cuda.empty_cache()  # of the model before
            free, _ = torch.cuda.mem_get_info()
            layers = min(layers, int(free * MEMORY_SHARE) // (size * pages))
        self.pool = torch.empty(layers * pages, *shape, dtype=run.randn(1).dtype, device=run.device)
        for part in self.pool.split(1024):
            part.normal_()

    def caches(self, pages: int, layers: int) -> list[torch.Tensor]:
        """A cache for each layer; they differ as far as the memory goes."""
        distinct = min(len(self.pool) // pages, layers)
        return [self.pool[i % distinct * pages :][:pages] for i in range(layers)]


class Shape:
    """A batch: queries, block table of scattered pages, lengths, a cache a layer."""

    def __init__(self, run: Run, model: Model, memory: Memory, lengths: list[int], layers: int) -> None:
        blocks = [cdiv(length, PAGE) for length in lengths]
        self.model, self.lengths, self.pages = model, lengths, sum(blocks) + 1
        self.q = run.randn(len(lengths), model.heads, model.head_dim)
        table = torch.zeros(len(lengths), max(blocks), dtype=torch.int32)
        for row, own in enumerate((torch.randperm(self.pages - 1) + 1).split(blocks)):
            table[row, : len(own)] = own
        self.table = table.to(run.device)
        self.slots = torch.arange(len(lengths), dtype=torch.int32, device=run.device)
        self.contexts = int32(lengths, run.device)
        self.caches = memory.caches(self.pages, layers)
        self.floor = sum(lengths) * 2 * model.kv_heads * model.head_dim * self.q.itemsize / RATE

    def plan(self, config: StreamDecodeConfig | None, rows: int | None = None) -> Plan:
        """Lists for the new kernel with these tiles, or for the old one. Not filled."""
        sizes = (rows or len(self.lengths), self.model.heads, self.model.kv_heads, self.model.head_dim)
        if config is None:
            return DecodePlan.allocate(*sizes, device=self.q.device)
        return StreamDecodePlan.allocate(*sizes, device=self.q.device, config=config)

    def attend(self, plan: Plan, kv: torch.Tensor, out: torch.Tensor, q: torch.Tensor | None = None) -> Launch:
        q = self.q if q is None else q
        if isinstance(plan, StreamDecodePlan):
            return stream_decode_launch(q, kv, self.table, plan, scale=None, softcap=0.0, sinks=None, out=out)
        return paged_decode_launch(q, kv, self.table, plan, scale=None, softcap=0.0, sinks=None, out=out)


def listing(plan: Plan, slots: torch.Tensor, contexts: torch.Tensor) -> Launch:
    if isinstance(plan, StreamDecodePlan):
        return plan.plan_launch(slots, contexts)
    return plan.plan_launch(slots, contexts, None)


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest relative RMS error of a head of a row; infinite where something is not a number."""
    off = (got.double() - expected.double()).norm(dim=-1) / expected.double().norm(dim=-1)
    return float(off.nan_to_num(float("inf")).max())


def wrong(what: str) -> None:
    print(f"WRONG: {what}", flush=True)
    raise SystemExit(1)


def check(shape: Shape, config: StreamDecodeConfig, name: str) -> float:
    """See the module; the error against the old kernel."""
    kv, outs = shape.caches[-1], []
    for tiles in (None, config, config):
        plan = shape.plan(tiles)
        listing(plan, shape.slots, shape.contexts).run()
        for _ in range(2):
            outs.append(torch.full_like(shape.q, float("nan")))
            shape.attend(plan, kv, outs[-1]).run()
        if bool(plan.count.any()):
            wrong(f"{name}: counters are not back at zero")
    old, new = outs[0], outs[2]
    if not all(torch.equal(new, again) for again in outs[3:]):
        wrong(f"{name}: bits differ from run to run")
    off = error(new, old)
    some = random.Random(0).sample(range(len(old)), min(EXACT_ROWS, len(old)))
    cu = torch.arange(len(some) + 1, dtype=torch.int32)
    exact = paged_attention_reference(
        shape.q[some], kv, shape.table, shape.slots[some], cu, shape.contexts[some]
    )  # fmt: skip
    if not max(off, error(new[some], exact)) < BOUND:
        wrong(f"{name}: off by {off:.1e} from the old kernel, by {error(new[some], exact):.1e} from float64")
    check_padding(shape, config, kv, new, name)
    return off


def check_padding(
    shape: Shape, config: StreamDecodeConfig, kv: torch.Tensor, expected: torch.Tensor, name: str
) -> None:
    """A padded row after every third row, and many at the end."""
    count = len(shape.lengths)
    live = torch.tensor([row + row // 3 for row in range(count)], device=shape.q.device)
    rows = count + count // 3 + 40
    slots = torch.full((rows,), -1, dtype=torch.int32, device=shape.q.device)
    contexts = torch.full_like(slots, 77)
    slots[live], contexts[live] = shape.slots, shape.contexts
    q = torch.full((rows, *shape.q.shape[1:]), float("nan"), dtype=shape.q.dtype, device=shape.q.device)
    q[live] = shape.q
    out, plan = torch.full_like(q, 7.0), shape.plan(config, rows)
    listing(plan, slots, contexts).run()
    shape.attend(plan, kv, out, q).run()
    if not torch.equal(out[live], expected):
        wrong(f"{name}: padding changes bits")
    if not bool((out[slots < 0] == 7.0).all()):
        wrong(f"{name}: padding is written")


@dataclass
class Times:
    """Microseconds."""

    layer: float
    plan: float


def time_layers(run: Run, shape: Shape, config: StreamDecodeConfig | None, norm: Launch | None, name: str) -> Times:
    """All layers in a graph; then what the last one left is looked at."""
    plan, out = shape.plan(config), torch.full_like(shape.q, float("nan"))
    lists = listing(plan, shape.slots, shape.contexts)
    lists.run()
    before = [] if norm is None else [norm]
    layers = [[*before, shape.attend(plan, kv, out)] for kv in shape.caches]
    layer = measure(run, layers, REPLAYS)
    expected = torch.empty_like(out)
    shape.attend(plan, shape.caches[-1], expected).run()
    if not torch.equal(out, expected) or bool(plan.count.any()):
        wrong(f"{name}: layers back to back leave something else, or counters")
    return Times(layer * 1e6, measure(run, [[lists]] * 10, REPLAYS) * 1e6)


def line(*cells: object) -> None:
    print("".join(str(cell).rjust(width) for cell, width in zip(cells, WIDTHS, strict=False)), flush=True)


WIDTHS = (8, 9, 8, 9, 15, 15, 9, 10, 11, 11)
HEADER = ("rows", "lengths", "differ", "floor", "old (share)", "new (share)", "gain", "error", "plan old", "plan new")


def bench(run: Run, model: Model, shapes: Sequence[tuple[int, str]], options: argparse.Namespace) -> None:
    """One model's table."""
    layers, most = (SHAPES[model.name]["num_hidden_layers"], 1600) if run.cuda else (2, 900)
    batches = {(rows, kind): lengths_of(kind, rows, most) for rows, kind in shapes}
    pages = {key: sum(cdiv(length, PAGE) for length in lengths) + 1 for key, lengths in batches.items()}
    memory = Memory(run, model, max(pages.values()), layers)
    table = stream_decode_config(target_of(torch.device(run.device)), model.head_dim, 2)
    print(f"\n{model.name}, {layers} layers, {table}", flush=True)
    line(*HEADER)
    for key, lengths in batches.items():
        shape = Shape(run, model, memory, lengths, layers)
        name = f"{model.name}, {key[0]} rows of {key[1]}"
        off = check(shape, table, name)
        stream = run.randn(key[0], model.hidden)
        norm = rms_norm_launch(stream, stream[0], 1e-6, residual=None, one_plus=False, out=stream.clone())
        between = norm if options.between else None
        old, new = (time_layers(run, shape, config, between, name) for config in (None, table))
        floor = shape.floor * 1e6
        cells = [f"{t.layer:.1f} ({floor / t.layer:.0%})" for t in (old, new)]
        differ = len({cache.data_ptr() for cache in shape.caches})
        line(
            *key, differ, f"{floor:.1f}", *cells, f"{1 - new.layer / old.layer:.0%}", f"{off:.1e}", f"{old.plan:.1f}",
            f"{new.plan:.1f}",
        )  # fmt: skip
        if options.between:
            print(f"    norm alone {measure(run, [[norm]] * layers, REPLAYS) * 1e6:.1f}", flush=True)
        if options.sweep and key in SWEEP_SHAPES:
            for label, config in sweep(table).items():
                off = check(shape, config, f"{name}, {label}")
                times = time_layers(run, shape, config, between, f"{name}, {label}")
                print(f"    {label:24} {times.layer:8.1f} ({floor / times.layer:.0%})  {off:.1e}", flush=True)


def compile_all(models: Sequence[Model], swept: bool) -> int:
    """All that will be launched, several at a time; how many were compiled anew."""
    device = torch.device("cuda", torch.cuda.current_device())
    run = Run("cuda", "")
    wanted: dict[Variant, None] = {}
    for model in models:
        table = stream_decode_config(target_of(device), model.head_dim, 2)
        memory = Memory.__new__(Memory)
        memory.pool = torch.zeros(8, 2, model.kv_heads, PAGE, model.head_dim, dtype=torch.bfloat16, device=device)
        shape = Shape(run, model, memory, [100, 200], 1)
        for config in (None, table, *(sweep(table).values() if swept else ())):
            plan = shape.plan(config)
            for launch in (listing(plan, shape.slots, shape.contexts), shape.attend(plan, memory.pool, shape.q)):
                wanted[Variant.of(launch)] = None
    compile_one: Callable[[Variant], bool] = partial(compile_variant, capability=target_of(device).capability)
    with ProcessPoolExecutor(max(1, (cpu_count() or 2) - 2), get_context("spawn")) as pool:
        return sum(pool.map(compile_one, wanted))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--model", default="llama-8b,qwen3-0.6b")
    parser.add_argument("--rows", default=",".join(map(str, ROWS)))
    parser.add_argument("--lengths", default="ragged,200,600")
    parser.add_argument("--between", action="store_true", help="a norm before each layer")
    parser.add_argument("--sweep", action="store_true", help="other tiles, too")
    options = parser.parse_args()
    run, began = Run(options.device, ""), time.perf_counter()
    torch.manual_seed(0)
    models = [model for model in MODELS if model.name in options.model.split(",")] if run.cuda else [TINY]
    shapes = [(int(rows), kind) for kind in options.lengths.split(",") for rows in options.rows.split(",")]
    if run.cuda:
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
        print(f"{compile_all(models, options.sweep)} kernels compiled, {time.perf_counter() - began:.0f} s", flush=True)
    else:
        shapes = [(5, "ragged"), (3, "70")]
    print("microseconds a layer; share of the floor; largest relative RMS error of a head against the old kernel")
    for model in models:
        bench(run, model, shapes, options)
    print(f"\nall correct, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
