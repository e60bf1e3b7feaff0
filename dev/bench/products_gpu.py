"""A layer's four products on one GPU by cuBLAS's rule, the best of cuBLASLt's algorithms and the project's kernels.

    PYTHONPATH=operator:runtime:kernels python3 dev/bench/products_gpu.py [--model llama-8b] [--rows 1,8,16,32,48,64]

Each product alone first, over copies of the weight that L2 does not hold, in a CUDA graph: microseconds, floor (the
weight's bytes at the measured bandwidth of a copy) ÷ measured, and its relative RMS error against fp32. Then the
chain o, norm, gate_up, glu, down, norm, qkv of all layers, microseconds a layer: there alone early starts show. Tiles
of `stream_gemm`, for up to 16 rows, are `CANDIDATES` beside `STREAM`, or those of `--stream`. `hopper_gemm` has gate
and up with the activation, o and down in parts that the norm adds; an engine's o and qkv of up to 16 rows are
`stream_gemm`'s. `--device cpu` with TRITON_INTERPRET=1 runs tiny shapes once, to try the script itself.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from os import cpu_count

import torch
import torch.nn.functional as F
from kernel_cases import MODELS, TINY, Model, Run, measure, sets_for
from torch import Tensor

from thranite.bench.shapes import SHAPES
from thranite.layers.cublas_lt import CublasLt, Product
from thranite_kernels.glu import glu
from thranite_kernels.hopper_gemm import hopper_gemm, tiles_for
from thranite_kernels.launch import recording
from thranite_kernels.rms_norm import rms_norm
from thranite_kernels.stream_gemm import MAX_ROWS, StreamScratch, stream_gemm
from thranite_kernels.target import STREAM, StreamConfig, target_of
from thranite_kernels.variant import Variant, compile_variant

CANDIDATES = [StreamConfig(64, 128, 8), StreamConfig(64, 256, 4, programs=128)]
KINDS = ("rule", "Lt", "stream", "hopper")
ALGORITHMS = 10
PRODUCT_BOUND, CHAIN_BOUND = 4e-3, 3e-2  # relative RMS errors in bf16, of a product and of all layers

Way = Callable[[Tensor, Tensor], Tensor]
"""x [T, K], weight [N, K] → [T, N]."""


@dataclass(frozen=True, slots=True)
class Result:
    """One way's time for a product."""

    kind: str  # one of `KINDS`
    name: str
    way: Way
    seconds: float


class Layers:
    """The weights of all layers that memory has room for, and inputs of `most` rows."""

    def __init__(self, run: Run, model: Model, most: int) -> None:
        self.linears = model.linears
        count = 2
        if run.cuda:
            one = 2 * sum(n * k for n, k in self.linears.values())
            count = min(SHAPES[model.name]["num_hidden_layers"], int(0.8 * torch.cuda.mem_get_info()[0]) // one)
        self.count = count
        self.weights = {
            name: [run.randn(n, k).mul_(k**-0.5) for _ in range(count)] for name, (n, k) in self.linears.items()
        }
        self.inputs = {name: run.randn(most, k) for name, (_, k) in self.linears.items()}
        self.norm, self.stream = run.randn(model.hidden), run.randn(most, model.hidden)

    def chain(self, rows: int, ways: Mapping[str, Way]) -> tuple[Callable[[], None], Tensor]:
        """All layers without attention; the tensor is what the last product left."""
        end = self.norm.new_empty(rows, self.linears["qkv"][0])

        def call() -> None:
            h, attended, qkv = self.stream[:rows].clone(), self.inputs["o"][:rows], end
            for layer in range(self.count):
                y = ways["o"](attended, self.weights["o"][layer])
                y = ways["gate_up"](rms_norm(y, self.norm, 1e-5, residual=h), self.weights["gate_up"][layer])
                if y.shape[1] == self.linears["gate_up"][0]:
                    y = glu(y, "silu")
                y = ways["down"](y, self.weights["down"][layer])
                qkv = ways["qkv"](rms_norm(y, self.norm, 1e-5, residual=h), self.weights["qkv"][layer])
            end.copy_(qkv)

        return call, end


def streaming(config: StreamConfig, width: int, device: str) -> Way:
    """`stream_gemm` with these tiles, for weights of up to `width` rows."""
    scratch = StreamScratch.allocate(width, device, config=config)
    return lambda x, weight: stream_gemm(x, weight, scratch, config=config)


def by_algorithm(library: CublasLt, product: Product, x: Tensor, weight: Tensor) -> Tensor:
    """One of cuBLASLt's ways."""
    return library.run(product, x, weight, x.new_empty(len(x), len(weight)))


def apart(actual: Tensor, expected: Tensor) -> float:
    """Relative RMS error, found on the device, of a product, its parts, or what an activation makes of it."""
    if actual.dim() == 3:
        actual = actual.sum(0)
    if actual.shape[1] < expected.shape[1]:
        expected = glu(expected.to(actual.dtype), "silu")
    return float((actual.float() - expected.float()).norm() / expected.float().norm())


def tiles(config: StreamConfig) -> str:
    """A configuration in a word."""
    programs = f" p{config.programs}" if config.programs else ""
    return f"{config.block_n}x{config.block_k} s{config.num_stages} w{config.num_warps} a{config.ahead}{programs}"


def compile_all(calls: list[Callable[[], object]]) -> int:
    """The variants of Triton's kernels that the calls launch, by other processes, into Triton's cache."""
    variants: dict[Variant, None] = {}
    with recording(lambda launch: variants.setdefault(Variant.of(launch))):
        for call in calls:
            call()
    compile_one = partial(compile_variant, capability=target_of(torch.device("cuda")).capability)
    with ProcessPoolExecutor(max(1, (cpu_count() or 2) - 2), get_context("spawn")) as pool:
        return sum(pool.map(compile_one, variants))


def copy_bandwidth(run: Run) -> float:
    """Bytes a second, read and written."""
    size = 1 << 30 if run.cuda else 1 << 10
    ends = [torch.zeros(size, dtype=torch.uint8, device=run.device) for _ in range(2)]
    return 2 * size / measure(run, [partial(ends[0].copy_, ends[1])], 10)


class Bench:
    """One model's products and chains."""

    def __init__(self, run: Run, model: Model, rows: list[int], configs: list[StreamConfig]) -> None:
        self.run, self.layers, self.failed = run, Layers(run, model, max(rows)), 0
        self.library = CublasLt(torch.device("cuda", torch.cuda.current_device())) if run.cuda else None
        width = max(n for n, _ in model.linears.values())
        self.streams = {config: streaming(config, width, run.device) for config in [STREAM, *(configs or CANDIDATES)]}

    def streams_for(self, rows: int) -> dict[StreamConfig, Way]:
        """Candidates, `STREAM` first."""
        return self.streams if rows <= MAX_ROWS else {}

    def on_hopper(self, rows: int) -> dict[str, Way]:
        """The products that `hopper_gemm` takes."""
        found: dict[str, Way] = {}
        for name, weights in self.layers.weights.items():
            x = self.layers.inputs[name][:rows]
            tiles = tiles_for(x, weights[0], parts=name in ("o", "down"), gated=name == "gate_up")
            if tiles is not None:
                found[name] = partial(hopper_gemm, tiles=tiles)
        return found

    def to_compile(self, rows: list[int]) -> list[Callable[[], object]]:
        """A call of every variant: chains of each number of rows have the norms' and activations'."""
        calls: list[Callable[[], object]] = []
        for count in rows:
            for way in self.streams_for(count).values() or [F.linear]:
                calls.append(self.layers.chain(count, dict.fromkeys(self.layers.linears, way))[0])
            hopper = self.on_hopper(count)
            if hopper.keys() == self.layers.linears.keys():
                calls.append(self.layers.chain(count, hopper)[0])
        return calls

    def results(self, name: str, rows: int, reference: Tensor) -> list[Result]:
        """The product by every way, the rule first; ways that fail are told and left out."""
        width, depth = self.layers.linears[name]
        x = self.layers.inputs[name][:rows]
        weights = self.layers.weights[name][: sets_for(self.run, 2 * width * depth)]
        ways: list[tuple[str, str, Way]] = [("rule", "", F.linear)]
        if self.library is not None:
            products = self.library.products(rows, width, depth, torch.bfloat16, ALGORITHMS)
            ways += [("Lt", f"#{i}", partial(by_algorithm, self.library, p)) for i, p in enumerate(products)]
        ways += [("stream", tiles(config), way) for config, way in self.streams_for(rows).items()]
        ways += [("hopper", "", way) for taken, way in self.on_hopper(rows).items() if taken == name]
        found = []
        for kind, label, way in ways:
            what = f"{name} {rows} rows {kind} {label}"
            try:
                error = apart(way(x, weights[0]), reference[:rows])
                seconds = measure(self.run, [partial(way, x, weight) for weight in weights], 10)
            except Exception as problem:  # noqa: BLE001 - a candidate that does not fit is a result
                print(f"{what}: {type(problem).__name__} {str(problem)[:90]!r}", flush=True)
                continue
            self.judge(what, error, PRODUCT_BOUND)
            found.append(Result(kind, label, way, seconds))
        return found

    def chain(self, name: str, rows: int, ways: Mapping[str, Way], expected: Tensor | None) -> Tensor:
        """Time a chain, and compare what its replays left with another's."""
        call, end = self.layers.chain(rows, ways)
        try:
            seconds = measure(self.run, [call], 8) / self.layers.count
        except Exception as problem:  # noqa: BLE001 - as above
            print(f"  {rows:4} rows {name:40} {type(problem).__name__} {str(problem)[:90]!r}", flush=True)
            return end
        error = 0.0 if expected is None else apart(end, expected)
        print(
            f"  {rows:4} rows {name:40} {seconds * 1e6:8.1f} µs a layer   apart from the rule's {error:.1e}", flush=True
        )
        self.judge(f"chain {rows} rows {name}", error, CHAIN_BOUND)
        return end

    def judge(self, what: str, error: float, bound: float) -> None:
        """Count and tell what is wrong; NaN is."""
        if not error < bound:
            self.failed += 1
            print(f"{what}: relative RMS error {error:.1e} EXCEEDS {bound:.0e}", flush=True)


def kinds(results: list[Result]) -> dict[str, list[Result]]:
    """Results of each of the three ways, the fastest first."""
    groups: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda r: r.seconds):
        groups.setdefault(result.kind, []).append(result)
    return {kind: groups[kind] for kind in KINDS if kind in groups}


def show(bench: Bench, rows: list[int], bandwidth: float) -> dict[int, dict[str, dict[str, Result]]]:
    """Print the products' table; returns the fastest of each way by rows and product."""
    best: dict[int, dict[str, dict[str, Result]]] = {count: {} for count in rows}
    for name, (width, depth) in bench.layers.linears.items():
        floor = 2 * width * depth / bandwidth
        reference = bench.layers.inputs[name].float() @ bench.layers.weights[name][0].float().T
        print(f"{name} {width} x {depth}, floor {floor * 1e6:.1f} µs", flush=True)
        for count in rows:
            groups = kinds(bench.results(name, count, reference))
            best[count][name] = {kind: group[0] for kind, group in groups.items()}
            cells = [f"{kind} {g[0].seconds * 1e6:6.1f} ({floor / g[0].seconds:.2f})" for kind, g in groups.items()]
            ranked = ", ".join(f"{r.name} {r.seconds * 1e6:.1f}" for r in groups.get("stream", []))
            print(
                f"  {count:4} rows  {'  '.join(cells)}  | {groups['Lt'][0].name if 'Lt' in groups else ''} {ranked}",
                flush=True,
            )
    whole = sum(2 * n * k for n, k in bench.layers.linears.values()) / bandwidth
    print(f"the four, floor {whole * 1e6:.1f} µs")
    for count, products in best.items():
        shared = [kind for kind in KINDS if all(kind in found for found in products.values())]
        sums = {kind: sum(found[kind].seconds for found in products.values()) for kind in shared}
        print(f"  {count:4} rows  {'  '.join(f'{k} {s * 1e6:6.1f} ({whole / s:.2f})' for k, s in sums.items())}")
    return best


def show_chains(bench: Bench, best: dict[int, dict[str, dict[str, Result]]]) -> None:
    """By the rule, by the best of each way, by the fastest of all for each product, by each of the tiles."""
    print(f"chains of {bench.layers.count} layers")
    for count, products in best.items():
        expected = bench.chain("rule", count, dict.fromkeys(products, F.linear), None)
        for kind in KINDS[1:]:
            if all(kind in found for found in products.values()):
                ways = {name: found[kind].way for name, found in products.items()}
                bench.chain(f"{kind}, the fastest of each product", count, ways, expected)
        fastest = {name: min(found.values(), key=lambda r: r.seconds).way for name, found in products.items()}
        bench.chain("of all ways the fastest", count, fastest, expected)
        for config, way in bench.streams_for(count).items():
            bench.chain(f"stream {tiles(config)}", count, dict.fromkeys(products, way), expected)


def main() -> int:
    """Parse, compile, time; fails if an error exceeds its bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[m.name for m in MODELS], default="llama-8b")
    parser.add_argument("--rows", default="1,8,16,32,48,64,96,128,192,256,448,512", help="comma-separated")
    parser.add_argument(
        "--stream", action="append", default=[], metavar="N,K,STAGES[,AHEAD[,PROGRAMS[,WARPS]]]",
        help="these tiles beside STREAM, instead of the candidates (may be given again)",
    )  # fmt: skip
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    options = parser.parse_args()
    run, rows = Run(options.device, ""), [int(count) for count in options.rows.split(",")]
    model = next(m for m in MODELS if m.name == options.model) if run.cuda else TINY
    start = time.perf_counter()
    bench = Bench(run, model, rows, [StreamConfig(*map(int, text.split(","))) for text in options.stream])
    if run.cuda:
        torch.backends.cuda.matmul.allow_tf32 = False
        compiled = compile_all(bench.to_compile(rows))
        print(f"{compiled} kernels compiled by {time.perf_counter() - start:.0f} s", flush=True)
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {model.name}", flush=True)
    bandwidth = copy_bandwidth(run)
    print(f"copy: {bandwidth / 1e12:.2f} TB/s, read and written; in brackets: floor ÷ measured")
    show_chains(bench, show(bench, rows, bandwidth))
    print(f"{bench.failed} wrong; {time.perf_counter() - start:.0f} s", flush=True)
    return int(bench.failed > 0)


if __name__ == "__main__":
    with torch.inference_mode():
        raise SystemExit(main())
