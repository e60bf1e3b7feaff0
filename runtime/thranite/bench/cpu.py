"""Compare this engine with transformers on the CPU: float32, the same threads, runs in turns, medians.

MODEL is a model directory or hub id, small enough for a CPU. Four comparisons: one stream; 16 requests of uneven
length at once against one at a time and against transformers' padded batch; the first token of a prompt whose head is
cached against a cold one.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from thranite.bench.interleave import Bar, Contestant, interleave, medians
from thranite.bench.workloads import Request

if TYPE_CHECKING:
    from thranite.bench.cpu_contestants import Engine, Transformers

STREAM_PROMPT, STREAM_OUTPUT = 64, 128
CROWD, CROWD_PROMPT, CROWD_OUTPUT = 16, (16, 128), (16, 256)
PROMPT, SHARED = 512, 461  # tokens of the prompts whose first token is timed, and of the part they share
MAX_MODEL_LEN = 1024

# Names of the figures.
STREAM, STREAM_HF = "one stream", "one stream, transformers"
TOGETHER, ALONE, BATCH_HF = "16 at once", "16 one by one", "16 in a padded batch, transformers"
COLD, CACHED = "cold prompt", "prompt with a cached head"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="model directory or hub id")
    parser.add_argument("--threads", type=int, help="torch's threads, for both (default: torch's choice)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each; the median counts (default: 5)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a bar is missed")


def run(args: argparse.Namespace) -> int:
    import torch

    from thranite.bench.cpu_contestants import Engine, Transformers
    from thranite.llm import LLM

    if args.threads:
        torch.set_num_threads(args.threads)
    llm = LLM(args.model, device="cpu", dtype="float32", max_model_len=MAX_MODEL_LEN, skip_tokenizer_init=True)
    work = Work(llm.info.vocab_size)
    engine, transformers = Engine(llm), Transformers(args.model)
    rates = interleave(announced(rate_contestants(work, engine, transformers)), args.repeats)
    firsts = interleave(announced(first_token_contestants(work, engine)), args.repeats)
    llm.close()
    bars = compare(medians(rates), medians(firsts))
    if args.json:
        record = {"threads": torch.get_num_threads(), "tokens_per_second": rates, "first_token_seconds": firsts}
        print(json.dumps({**record, "bars": [{**asdict(bar), "met": bar.met} for bar in bars]}, indent=2))
    else:
        title = f"{args.model}, float32, {torch.get_num_threads()} threads, median of {args.repeats}"
        show(medians(rates), medians(firsts), bars, title)
    return 1 if args.check and not all(bar.met for bar in bars) else 0


class Work:
    """Requests: the same lengths in every repeat, ids that no other contestant or repeat has seen."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size

    def ids(self, key: str, count: int) -> list[int]:
        return random.Random(key).choices(range(10, self._vocab_size), k=count)

    def stream(self, key: str) -> list[Request]:
        return [Request(self.ids(f"stream/{key}", STREAM_PROMPT), STREAM_OUTPUT)]

    def crowd(self, key: str) -> list[Request]:
        size = random.Random(0)
        lengths = [(size.randint(*CROWD_PROMPT), size.randint(*CROWD_OUTPUT)) for _ in range(CROWD)]
        return [Request(self.ids(f"crowd/{key}/{i}", prompt), output) for i, (prompt, output) in enumerate(lengths)]

    def prompt(self, head: str, tail: str) -> list[Request]:
        """One prompt that shares its first tokens with the others of the same `head`; one token out."""
        return [Request(self.ids(f"head/{head}", SHARED) + self.ids(f"tail/{tail}", PROMPT - SHARED), 1)]


def rate_contestants(work: Work, engine: Engine, transformers: Transformers) -> dict[str, Contestant]:
    """Output tokens a second of each."""

    def rate(name: str, make: Callable[[str], list[Request]], seconds: Callable[[list[Request]], float]) -> Contestant:
        def once(repeat: int) -> float:
            requests = make(f"{name}/{repeat}")
            return sum(request.output_tokens for request in requests) / seconds(requests)

        return once

    return {
        STREAM: rate(STREAM, work.stream, engine.together),
        STREAM_HF: rate(STREAM_HF, work.stream, transformers.padded_batch),
        TOGETHER: rate(TOGETHER, work.crowd, engine.together),
        ALONE: rate(ALONE, work.crowd, engine.one_by_one),
        BATCH_HF: rate(BATCH_HF, work.crowd, transformers.padded_batch),
    }


def first_token_contestants(work: Work, engine: Engine) -> dict[str, Contestant]:
    """Seconds to the first token. The cached head is computed once, before the clock runs."""
    engine.together(work.prompt("shared", "first"))
    return {
        COLD: lambda repeat: engine.together(work.prompt(f"cold/{repeat}", f"cold/{repeat}")),
        CACHED: lambda repeat: engine.together(work.prompt("shared", f"cached/{repeat}")),
    }


def compare(rates: Mapping[str, float], firsts: Mapping[str, float]) -> list[Bar]:
    """The ratios this project holds itself to."""
    return [
        Bar(f"{STREAM} / {STREAM_HF}", rates[STREAM] / rates[STREAM_HF], 1.0, at_least=True),
        Bar(f"{TOGETHER} / {ALONE}", rates[TOGETHER] / rates[ALONE], 3.0, at_least=True),
        Bar(f"{TOGETHER} / {BATCH_HF}", rates[TOGETHER] / rates[BATCH_HF], 1.3, at_least=True),
        Bar(f"{CACHED} / {COLD}", firsts[CACHED] / firsts[COLD], 0.3, at_least=False),
    ]


def announced(contestants: Mapping[str, Contestant]) -> dict[str, Contestant]:
    """The same contestants; each figure is told on stderr as it comes."""

    def wrap(name: str, contestant: Contestant) -> Contestant:
        def once(repeat: int) -> float:
            figure = contestant(repeat)
            print(f"run {repeat + 1}, {name}: {figure:.3f}", file=sys.stderr, flush=True)
            return figure

        return once

    return {name: wrap(name, contestant) for name, contestant in contestants.items()}


def show(rates: Mapping[str, float], firsts: Mapping[str, float], bars: Sequence[Bar], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    figures = Table("what", "median", title=title)
    for name, rate in rates.items():
        figures.add_row(name, f"{rate:.1f} tok/s")
    for name, seconds in firsts.items():
        figures.add_row(f"{name}, first token", f"{1e3 * seconds:.0f} ms")
    ratios = Table("ratio", "measured", "bar", "")
    for bar in bars:
        bound = f"{'at least' if bar.at_least else 'at most'} {bar.bound:.1f}x"
        ratios.add_row(bar.name, f"{bar.ratio:.2f}x", bound, "met" if bar.met else "MISSED")
    console = Console()
    console.print(figures)
    console.print(ratios)
