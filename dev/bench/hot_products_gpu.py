"""A layer's four products on one GPU by cuBLAS's rule and each of cuBLASLt's algorithms, cool and hot.

    PYTHONPATH=operator:runtime:kernels python3 dev/bench/hot_products_gpu.py [--rows 8192,4096,1024] [--ranks 1]

Cool is how `tuned_products` chooses for few rows: the least of single runs that find nothing in L2, after a pause.
Brief is how it chooses for many: some 20 ms on end, as long after the same algorithm began. Hot is how a step of many
rows runs, with the board at its power limit: one call among as many as fill `--seconds`, in CUDA graphs over copies of
the weight that L2 does not hold, once the same algorithm has run for half as long. The board's clock and power are
those of the hot calls. Beside them the algorithm's configuration, numbers of cublasLt.h's enumerations; the rule's is
unknown. Then the hot times of the four, by the rule and by the choices from each of these times. Products that a layer
of `--ranks` adds into the residual stream add here too. `--device cpu` runs tiny shapes with pretended algorithms, to
try the script itself.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from typing import Protocol

import torch
from board_clock import Clock, Means
from kernel_cases import MODELS, TINY, Model, Run, sets_for, sustained
from torch import Tensor

from thranite.layers.cublas_lt import CublasError, CublasLt, Product
from thranite.layers.linear import ADDING_ROWS
from thranite.layers.tuned_products import CANDIDATES, GAIN, HOT_GAIN, HotClock, milliseconds, product_by_rule
from thranite.models.partition import kv_heads

PAUSE = 0.1  # seconds before the single runs of an algorithm
HEAT_SECONDS = 1.0  # by the rule, before a product's first hot time: a cold board leaks less
GRAPH_SECONDS = 0.02  # of the calls in one graph
ADDING = ("o", "down")
RULE = "rule"
COLUMNS = ("id", "tile", "stages", "split_k", "reduction", "swizzle", "custom", "inner", "cluster")

Call = Callable[[Tensor], object]
"""One way's product with the given weight."""


@dataclass(frozen=True, slots=True)
class Way:
    """An algorithm that may be called."""

    name: str
    call: Call
    configuration: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Result:
    """An algorithm's times for a product, in microseconds."""

    way: Way
    cool: float
    brief: float
    hot: float
    board: Means | None


class Ways(Protocol):
    """Where algorithms come from."""

    def __call__(self, x: Tensor, weight: Tensor, out: Tensor, add: bool) -> Sequence[Way]:
        """All but the rule, for products of these sizes into `out`."""


def by_algorithm(library: CublasLt, product: Product, x: Tensor, out: Tensor, add: bool, weight: Tensor) -> Tensor:
    """One of cuBLASLt's ways, the weight last."""
    return library.run(product, x, weight, out, add=add)


def cublas_ways(library: CublasLt, x: Tensor, weight: Tensor, out: Tensor, add: bool) -> Sequence[Way]:
    """As many as `tuned_products` compares."""
    n, k = weight.shape
    products = library.products(len(x), n, k, weight.dtype, CANDIDATES)
    return [
        Way(f"#{i}", partial(by_algorithm, library, product, x, out, add), library.configuration(product))
        for i, product in enumerate(products)
    ]


def pretended_ways(x: Tensor, weight: Tensor, out: Tensor, add: bool) -> Sequence[Way]:
    """Two, of which the second does not fit."""

    def refuse(weight: Tensor) -> None:
        raise CublasError("pretended")

    values = {name: i for i, name in enumerate(COLUMNS)}
    beta = int(add)
    return [Way("#0", lambda w: torch.addmm(out, x, w.t(), beta=beta, out=out), values), Way("#1", refuse, values)]


def of_rank(model: Model, ranks: int) -> Model:
    """What one rank holds of a model."""
    if model.heads % ranks or model.intermediate % ranks:
        raise SystemExit(f"{model.name} does not part into {ranks}")
    held = kv_heads(model.kv_heads, ranks)
    return replace(model, heads=model.heads // ranks, kv_heads=held, intermediate=model.intermediate // ranks)


class Bench:
    """The stopwatches, for all products."""

    def __init__(self, run: Run, ways: Ways, seconds: float) -> None:
        self.run, self.ways, self.seconds, self.clock = run, ways, seconds, Clock(run)

    def results(self, rows: int, n: int, k: int, add: bool) -> list[Result]:
        """The rule first. Cool times of all come before hot ones of any; algorithms that fail are told and left out."""
        x = self.run.randn(rows, k)
        weights = [self.run.randn(n, k).mul_(k**-0.5) for _ in range(sets_for(self.run, 2 * n * k))]
        out = x.new_zeros(rows, n)
        rule = Way(RULE, lambda w: product_by_rule(x, w, out if add else None), {})
        cool: list[tuple[Way, float]] = []
        for way in (rule, *self.ways(x, weights[0], out, add)):
            try:
                cool.append((way, self.cool(partial(way.call, weights[0]))))
            except CublasError as error:
                print(f"  {way.name}: {error}", flush=True)
        if self.run.cuda:
            sustained(self.run, partial(rule.call, weights[0]), HEAT_SECONDS)
        clock = HotClock(torch.device(self.run.device))
        brief = [self.brief(clock, partial(way.call, weights[0])) for way, _ in cool]
        return [
            Result(way, each, short, *self.hot(way.call, weights, each))
            for (way, each), short in zip(cool, brief, strict=True)
        ]

    def brief(self, clock: HotClock, call: Callable[[], object]) -> float:
        """Microseconds; infinite where a single run was hopeless."""
        return clock(call) * 1e3 if self.run.cuda else sustained(self.run, call, 1e-3) * 1e6

    def cool(self, call: Callable[[], object]) -> float:
        """Microseconds, as `tuned_products` finds them."""
        if not self.run.cuda:
            return sustained(self.run, call, 1e-3) * 1e6
        torch.cuda.synchronize()
        time.sleep(PAUSE)
        return milliseconds(call, torch.device(self.run.device)) * 1e3

    def hot(self, call: Call, weights: Sequence[Tensor], each: float) -> tuple[float, Means | None]:
        """Microseconds of one call, and the board meanwhile; a call takes about `each` microseconds."""
        calls = [partial(call, weight) for weight in weights]
        rounds = ceil(GRAPH_SECONDS * 1e6 / (each * len(calls))) if self.run.cuda else 1

        def everything() -> None:
            for _ in range(rounds):
                for one in calls:
                    one()

        replay = everything
        if self.run.cuda:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                everything()
            replay = graph.replay
        sustained(self.run, replay, self.seconds / 2)
        begin = time.perf_counter()
        seconds = sustained(self.run, replay, self.seconds)
        return seconds / (rounds * len(calls)) * 1e6, self.clock.means(begin)


def choice(results: Sequence[Result], time_of: Callable[[Result], float], gain: float) -> Result:
    """As `tuned_products` chooses: the quickest, unless the rule is about as quick."""
    rule, best = results[0], min(results, key=time_of)
    return best if time_of(best) < gain * time_of(rule) else rule


def show(results: Sequence[Result], chosen: Mapping[str, Result]) -> None:
    """A product's table, the quickest when hot first."""
    times = " ".join(f"{name:>9}" for name in ("hot µs", "brief µs", "cool µs"))
    print(f"  {'':4} {times} {'MHz':>5} {'W':>5}  {' '.join(f'{c:>9}' for c in COLUMNS)}")
    for result in sorted(results, key=lambda r: r.hot):
        board, values = result.board, result.way.configuration
        mhz, watts = ("-", "-") if board is None else (f"{board.mhz:.0f}", f"{board.watts:.0f}")
        cells = " ".join(f"{values.get(column, '-'):>9}" for column in COLUMNS)
        marks = ", ".join(kind for kind, one in chosen.items() if one is result)
        times = " ".join(f"{microseconds:9.1f}" for microseconds in (result.hot, result.brief, result.cool))
        line = f"  {result.way.name:4} {times} {mhz:>5} {watts:>5}  {cells}"
        print(f"{line}  {marks}".rstrip(), flush=True)


def main() -> int:
    """Parse, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[m.name for m in MODELS], default="llama-8b")
    parser.add_argument("--rows", default="8192,4096,1024", help="comma-separated, of steps")
    parser.add_argument("--ranks", type=int, default=1, help="the shapes are those of one of as many")
    parser.add_argument("--seconds", type=float, default=0.35, help="of an algorithm's hot calls")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    options = parser.parse_args()
    run = Run(options.device, "")
    whole = next(m for m in MODELS if m.name == options.model) if run.cuda else TINY
    model, start = of_rank(whole, options.ranks), time.perf_counter()
    ways: Ways = pretended_ways
    if run.cuda:
        ways = partial(cublas_ways, CublasLt(torch.device("cuda", torch.cuda.current_device())))
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {model.name}, a rank of {options.ranks}")
    bench = Bench(run, ways, options.seconds)
    for rows in map(int, options.rows.split(",")):
        sums: dict[str, float] = {}
        for name, (n, k) in model.linears.items():
            add = name in ADDING and options.ranks == 1 and rows >= ADDING_ROWS
            print(f"{rows} rows {name} {n} x {k}{', adds' if add else ''}", flush=True)
            results = bench.results(rows, n, k, add)
            chosen = {
                "cool choice": choice(results, lambda r: r.cool, GAIN),
                "brief choice": choice(results, lambda r: r.brief, HOT_GAIN),
                "hot choice": choice(results, lambda r: r.hot, HOT_GAIN),
            }
            show(results, chosen)
            for kind, result in {RULE: results[0], **chosen}.items():
                sums[kind] = sums.get(kind, 0.0) + result.hot
        cells = [f"{kind} {total:.0f} µs ({total / sums[RULE] - 1:+.1%})" for kind, total in sums.items()]
        print(f"{rows} rows, the four, hot: {', '.join(cells)}", flush=True)
    print(f"{time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    with torch.inference_mode():
        raise SystemExit(main())
