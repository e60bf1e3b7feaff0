"""Measure how a decode step's time grows with the context: one request alone, at each of several lengths.

The slope is what attention over one more token costs. The engine has room for one long request and no other.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from thranite.bench.offline import add_engine_arguments, load, machine
from thranite.bench.shapes import SHAPES, write_model_directory
from thranite.bench.start_time import StartTimes
from thranite.bench.workloads import FIRST_ID, LAST_ID, TEMPERATURE
from thranite.errors import ConfigError, ThraniteError
from thranite.request import EngineRequest
from thranite.sampling_params import TokenParams

if TYPE_CHECKING:
    from thranite.llm import LLM

LENGTHS = (1024, 32768)
STEPS = 128
MAX_MODEL_LEN = 40_960


@dataclass(frozen=True, slots=True)
class ContextCost:
    """Milliseconds a step by context length (tokens); the first of them is the shortest."""

    model: str
    step_ms: dict[int, float]

    @property
    def slope(self) -> float:
        """Milliseconds a step that one more token of context costs."""
        shortest, longest = min(self.step_ms), max(self.step_ms)
        return (self.step_ms[longest] - self.step_ms[shortest]) / (longest - shortest)

    def line(self) -> str:
        steps = ", ".join(f"{ms:.3f} ms/step at {length:,}" for length, ms in self.step_ms.items())
        return f"{self.model}: {steps}; {self.slope:.2e} ms a token of context"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", nargs="?", default="llama-8b", help="default: llama-8b")
    parser.add_argument(
        "--length", type=int, action="append", help=f"repeatable (default: {', '.join(map(str, LENGTHS))})"
    )
    parser.add_argument("--steps", type=int, default=STEPS, help=f"decode steps measured at each (default: {STEPS})")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a line")
    engine = parser.add_argument_group("engine")
    engine.add_argument("--max-model-len", type=int, default=MAX_MODEL_LEN, help=f"default: {MAX_MODEL_LEN}")
    add_engine_arguments(engine)


def run(args: argparse.Namespace) -> int:
    if args.steps < 1:
        raise ConfigError(f"--steps must be at least 1, got {args.steps}")
    lengths = sorted(args.length or LENGTHS)
    if len(set(lengths)) < 2 or lengths[0] < 1:
        raise ConfigError(f"--length {lengths}: a slope needs two different lengths of 1 or more", "repeat --length")
    with tempfile.TemporaryDirectory(prefix="thranite-bench-") as scratch:
        directory = write_model_directory(args.model, Path(scratch)) if args.model in SHAPES else Path(args.model)
        llm = load(directory, args, lengths[-1] + args.steps + 1, StartTimes())
        try:
            cost = ContextCost(args.model, {n: 1e3 * step_seconds(llm, n, args.steps) for n in lengths})
        finally:
            llm.close()
    if args.json:
        print(json.dumps({"machine": machine(args.device), "step_ms": cost.step_ms, "slope": cost.slope}, indent=2))
    else:
        print(cost.line())
    return 0


def step_seconds(llm: LLM, length: int, steps: int) -> float:
    """Mean of `steps` decode steps behind a prompt of `length` tokens, the engine's only request."""
    ids = random.Random(f"context/{length}").choices(range(FIRST_ID, min(llm.info.vocab_size, LAST_ID)), k=length)
    params = TokenParams(max_tokens=steps + 1, seed=0, temperature=TEMPERATURE)
    llm.engine.add(EngineRequest(f"context-{length}", tuple(ids), params))
    arrived: list[float] = []
    while llm.engine.has_work:
        for delta in llm.engine.step():
            arrived += [time.perf_counter()] * len(delta.token_ids)
    if len(arrived) != steps + 1:
        raise ThraniteError(f"context {length}: {len(arrived)} tokens came where {steps + 1} were asked for")
    return (arrived[-1] - arrived[0]) / steps
