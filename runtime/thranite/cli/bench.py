"""Measure the engine in this process, or a server that runs already.

`offline` runs the reference workloads and reports tokens a second; `context` tells what a longer context costs;
`all-reduce` times the ranks' sums alone; `serve` loads a server over HTTP and reports what its clients see; `cpu`
compares this engine with transformers on the same machine and threads.
"""

from __future__ import annotations

import argparse
import importlib

KINDS = {
    "offline": "throughput and step times of the reference workloads",
    "context": "how a decode step's time grows with the context",
    "serve": "latencies of a running server under load",
    "all-reduce": "the sum over tensor-parallel ranks by itself, by size",
    "cpu": "this engine and transformers side by side on the CPU",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True, prog="thranite bench")
    for name, summary in KINDS.items():
        module = importlib.import_module(_module(name))
        kind = kinds.add_parser(
            name, help=summary, description=module.__doc__, allow_abbrev=False, formatter_class=parser.formatter_class
        )
        module.add_arguments(kind)


def _module(kind: str) -> str:
    return f"thranite.bench.{kind.replace('-', '_')}"


def run(args: argparse.Namespace) -> int:
    return int(importlib.import_module(_module(args.kind)).run(args))
