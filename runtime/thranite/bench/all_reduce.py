"""Time the all-reduce alone over the ranks of a tensor-parallel group, 8 KiB to 64 MiB: on GPUs inside a CUDA graph.

That is what a step pays twice a layer: llama-8b with 64 rows of bfloat16 sums 512 KiB each time. Each way is timed by
itself, and `auto` is what the engine takes; then the same with what follows in a layer, for 1 to 8,192 rows of 4,096.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence

from thranite.bench.all_reduce_rank import Job, Timing, measure_rank
from thranite.errors import ConfigError, ThraniteError
from thranite.loader.device_memory import format_bytes
from thranite.parallel.exits import describe_exit
from thranite.parallel.ranks import rendezvous

EXIT_SECONDS = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tensor-parallel-size", type=int, default=2, help="ranks (default: 2)")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="cpu: over gloo, no graphs")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--largest", type=int, default=64 << 20, help="bytes of the largest sum (default: 64 MiB)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    if args.tensor_parallel_size < 2:
        raise ConfigError(f"--tensor-parallel-size must be at least 2 here, got {args.tensor_parallel_size}")
    timings = measure(args.tensor_parallel_size, args.device, args.dtype, args.largest)
    if args.json:
        print(json.dumps([timing.record() for timing in timings], indent=2))
    else:
        show(timings)
    return 0


def measure(size: int, device: str, dtype: str, largest: int) -> list[Timing]:
    """Rank 0 measures in this process, the others beside it."""
    from thranite.runner.device import check_gpus, uses_gpus

    if uses_gpus(device):
        check_gpus(size)
    store = rendezvous()
    jobs = [Job(rank, size, str(store), device, dtype, largest) for rank in range(size)]
    others = [
        subprocess.Popen([sys.executable, "-m", "thranite.bench.all_reduce_rank", *job.argv()]) for job in jobs[1:]
    ]
    try:
        timings = measure_rank(jobs[0])
        for rank, process in enumerate(others, 1):
            if returncode := process.wait(EXIT_SECONDS):
                raise ThraniteError(describe_exit(f"rank {rank}", returncode))
    finally:
        for process in others:
            process.kill()
            process.wait()
        shutil.rmtree(store.parent)
    return timings


def show(timings: Sequence[Timing]) -> None:
    """One line a size and one column a way; sums with their norm apart."""
    for norm in (False, True):
        table = [timing for timing in timings if timing.norm == norm]
        ways = list(dict.fromkeys(timing.way for timing in table))
        if not table:
            continue
        print(f"\nµs a sum{', added to a residual and normalised' if norm else ''}; its bytes over the least time")
        print(f"{'bytes':>10}" + "".join(f"{way:>16}" for way in ways) + f"{'GB/s':>10}")
        for count in dict.fromkeys(timing.bytes for timing in table):
            found = {timing.way: timing for timing in table if timing.bytes == count}
            columns = "".join(f"{found[way].microseconds:>16.1f}" if way in found else f"{'–':>16}" for way in ways)
            quickest = min(found.values(), key=lambda timing: timing.microseconds)
            print(f"{format_bytes(count):>10}{columns}{quickest.gigabytes_a_second:>10.1f}")
