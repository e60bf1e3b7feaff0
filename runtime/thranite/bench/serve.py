"""Load a running server (any that speaks OpenAI's completions) and report latencies as its clients see them.

Runs are RATE:COUNT pairs, RATE in requests a second or inf for all at once. Arrivals are Poisson; prompts are 200 to
800 random token ids that never repeat, answers 64 to 256 tokens. The load depends on the whole list: compare servers by
the same list. A tiny run goes before the first. A run with a failed request does not count: the exit code is then 1.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit

from thranite.bench.http_stream import StreamRecord
from thranite.bench.online_figures import OnlineFigures, figures, table
from thranite.bench.online_load import Orders
from thranite.bench.workers import START_SECONDS, run_workers
from thranite.errors import ConfigError

Run = tuple[float, int]  # requests a second, requests
REFERENCE_RUNS = "16:320,4:80,32:480,inf:512,16:320,32:480,4:80,inf:512"
WARM_UP: Run = (math.inf, 16)
WORKER = (sys.executable, "-m", "thranite.bench.online_load")


@dataclass(frozen=True, slots=True)
class Load:
    """Whom to load, from how many client processes. Token ids are below `vocab`."""

    host: str
    port: int
    model: str
    processes: int
    vocab: int
    api_key: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server (default: http://127.0.0.1:8000)")
    parser.add_argument("--model", required=True, help="its name there")
    parser.add_argument("--runs", default=REFERENCE_RUNS, help=f"RATE:COUNT,… (default: {REFERENCE_RUNS})")
    parser.add_argument("--processes", type=int, default=4, help="client processes that share each run (default: 4)")
    parser.add_argument("--vocab", type=int, default=100_000, help="token ids are below this (default: 100000)")
    parser.add_argument("--api-key", help="key to send (default: none)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    runs = parse_runs(args.runs, args.processes)
    load = Load(*_address(args.url), args.model, args.processes, args.vocab, args.api_key)
    measured: list[OnlineFigures] = []
    for place, (rate, count) in enumerate([WARM_UP, *runs]):
        result = measure(load, place, rate, count)
        if place > 0:
            measured.append(result)
        if result.failed:
            print(f"{result.failed} of {result.requests} requests failed: {result.first_error}", file=sys.stderr)
    print(json.dumps([result.record() for result in measured], indent=2) if args.json else table(measured))
    return int(any(result.failed for result in measured))


def parse_runs(text: str, processes: int) -> list[Run]:
    """Raises ConfigError."""
    if processes < 1:
        raise ConfigError(f"--processes must be at least 1, got {processes}")
    runs = []
    for part in text.split(","):
        rate, _, count = part.strip().partition(":")
        try:
            run = float(rate), int(count)
        except ValueError as error:
            raise ConfigError(f"--runs: {part!r} is not RATE:COUNT", "write for example 16:320,inf:512") from error
        if not run[0] > 0 or run[1] < processes:
            raise ConfigError(f"--runs: {part!r} needs a rate above 0 and a request for each of {processes} processes")
        runs.append(run)
    return runs


def measure(load: Load, place: int, rate: float, count: int) -> OnlineFigures:
    """One run, shared by the client processes. `place` in the list seeds it."""
    begin = time.monotonic() + START_SECONDS
    orders: Sequence[Orders] = [
        Orders(
            host=load.host,
            port=load.port,
            model=load.model,
            seed=1000 * place + number + 1,
            rate=rate / load.processes,
            count=count // load.processes + (number < count % load.processes),
            vocab=load.vocab,
            begin=begin,
            api_key=load.api_key,
        )
        for number in range(load.processes)
    ]
    results = run_workers(WORKER, [asdict(order) for order in orders])
    return figures(rate, [StreamRecord(**record) for result in results for record in result], begin)


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ConfigError(f"--url {url!r}: only http://HOST:PORT is measured")
    return parts.hostname, parts.port or 80
