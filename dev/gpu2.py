"""What only two GPUs can show: `python3 dev/gpu2.py test|bench`, with that Python as it is.

Each part is a process of its own under its own time limit; one that fails or hangs does not keep the next from running.
A part that ends is a line at once; the last lines are a table of all parts; the exit code is the number of those that
failed. THRANITE_GPU2_SECONDS bounds the whole (default 480). SIGTERM cuts it: the running part is ended with all its
processes, and the table is of what is known. THRANITE_GPU2_LOGS is a folder for full outputs.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in ("operator", "runtime", "kernels", ".")),
    "NCCL_NVLS_ENABLE": "0",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
    "PYTHONFAULTHANDLER": "1",  # a part that hangs tells where, and loses nothing of what it said
    "PYTHONUNBUFFERED": "1",
}
RANKS = "tests/runtime/parallel/test_llm_ranks.py"
ROWS = "llama-8b/decode1,llama-8b/decode64,llama-8b/prefill,llama-8b/mixed"
TAIL_LINES, STACK_LINES = 60, 240  # shown of a part that fails, and of one that hangs
STACKS_SECONDS, STACK_SECONDS = 1.0, 0.2  # for all processes to say where they are, and for each before the next
LOOK_SECONDS = 0.05  # between two looks at whether a part has ended, or is to
LEAST_SECONDS = 10.0  # that are left, or a part does not begin


@dataclass(frozen=True, slots=True)
class Part:
    """`seconds`: its time limit. `shown`: its whole output is wanted, not only a failure's."""

    name: str
    command: Sequence[str]
    seconds: int
    shown: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    part: Part
    verdict: str
    seconds: float = 0.0
    last: str = ""

    def __str__(self) -> str:
        return f"{self.part.name:<12}{self.verdict:<34}{self.seconds:>7.1f} s  {self.last[:100]}"


def tests() -> list[Part]:
    """In the order in which a failure explains those that follow."""

    def part(name: str, seconds: int, path: str, chosen: str) -> Part:
        # What ranks say must not end with pytest, which is ended where it hangs: it captures its own output alone.
        options = ["-m", "gpu2", "-x", "-q", "-rs", "-p", "no:cacheprovider", "--capture=sys", "--durations=5"]
        return Part(name, [sys.executable, "-m", "pytest", *options, path, "-k", chosen], seconds)

    return [
        part("sums", 180, "tests/runtime/parallel/test_gpu_sums.py", "sums"),
        part("features", 150, RANKS, "cuda and (feature or embeddings or loopback or bitmasks)"),
        part("killed", 75, RANKS, "cuda and killed_rank"),
        part("error", 75, RANKS, "cuda and rank_that_raises"),
        part("stopped", 75, RANKS, "cuda and stopped_rank"),
        part("gemma3", 120, RANKS, "cuda and gemma3"),
    ]


def benches(rows: str, more: Sequence[str]) -> list[Part]:
    offline = [sys.executable, "-m", "thranite", "bench", "offline", "--tensor-parallel-size", "2"]
    quick = ",".join(row for row in rows.split(",") if "decode" in row)
    parts = [
        Part("all-reduce", [sys.executable, "-m", "thranite", "bench", "all-reduce", "--device", "cuda"], 100, True),
        Part("workloads", [*offline, "--rows", rows, *more], 240, True),
    ]
    if quick:  # its start is the second one, with every kernel in Triton's cache
        command = [*offline, "--rows", quick, "--runs", "1", "--no-peer-all-reduce", *more]
        parts.append(Part("NCCL alone", command, 120, True))
    return parts


def run(part: Part, seconds: float, cut: Callable[[], bool] = lambda: False) -> Result:
    """Its output goes to our own as it ends: all of it, or the end of a failure's. To a file, in which it is found
    whatever becomes of us; a pipe would have to be read until the last rank has closed it. `cut`: it is to end now."""
    began = time.monotonic()
    with log_of(part) as log:
        process = subprocess.Popen(
            part.command,
            cwd=ROOT,
            env=os.environ | ENVIRONMENT,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        while (code := process.poll()) is None and time.monotonic() - began < seconds and not cut():
            time.sleep(LOOK_SECONDS)
        if code is None:
            end(process)
            verdict = "FAILED (cut by SIGTERM)" if cut() else f"FAILED (no end after {seconds:.0f} s)"
        else:
            verdict = "ok" if code == 0 else f"FAILED ({code})"
        log.seek(0)
        lines = log.read().decode(errors="replace").strip().splitlines()
    if part.shown or verdict != "ok":
        tail = STACK_LINES if code is None else TAIL_LINES
        print(f"\n=== {part.name}: {verdict}\n" + "\n".join(lines if part.shown else lines[-tail:]), flush=True)
    return Result(part, verdict, time.monotonic() - began, lines[-1] if lines else "")


@contextmanager
def sigterm() -> Iterator[Callable[[], bool]]:
    """Whether it has come. It interrupts nothing: between a process's start and its name it would be lost."""
    came = False

    def note(*_: object) -> None:
        nonlocal came
        came = True

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGTERM, before)


def end(process: subprocess.Popen[bytes]) -> None:
    """It and what it has started, after each has said where it is. One that lived on would hold its GPU."""
    pids = [*descendants(process.pid), process.pid]
    for pid in reversed(pids):  # or the others' ends would move it on before it is asked
        send(pid, signal.SIGSTOP)
    for pid in pids:
        send(pid, signal.SIGABRT)
        send(pid, signal.SIGCONT)
        time.sleep(STACK_SECONDS)
    time.sleep(STACKS_SECONDS)
    for pid in pids:
        send(pid, signal.SIGKILL)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it has just ended
        os.kill(pid, number)


def log_of(part: Part) -> IO[bytes]:
    folder = os.environ.get("THRANITE_GPU2_LOGS")
    if not folder:
        return tempfile.TemporaryFile()
    Path(folder).mkdir(parents=True, exist_ok=True)
    return (Path(folder) / f"{part.name.replace(' ', '-')}.log").open("wb+")


def descendants(pid: int) -> list[int]:
    """Processes that this one has started, and those have: ranks have sessions of their own."""
    children: dict[int, list[int]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(process.name))
    found = list(children.get(pid, ()))
    for child in found:
        found += children.get(child, ())
    return found


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="What only two GPUs can show.")
    parser.add_argument("what", choices=("test", "bench"))
    parser.add_argument("--parts", default="", help="only these, comma-separated")
    parser.add_argument("--rows", default=ROWS, help="MODEL/WORKLOAD,… of the benchmark")
    args, more = parser.parse_known_args(argv)
    parts = tests() if args.what == "test" else benches(args.rows, more)
    wanted = [name.strip() for name in args.parts.split(",") if name.strip()]
    if unknown := set(wanted) - {part.name for part in parts}:
        parser.error(f"no such parts: {', '.join(sorted(unknown))}; there are {', '.join(p.name for p in parts)}")
    if args.what == "test" and more:
        parser.error(f"unknown arguments: {' '.join(more)}")
    deadline = time.monotonic() + float(os.environ.get("THRANITE_GPU2_SECONDS", "480"))
    results = []
    with sigterm() as cut:
        for part in parts:
            if wanted and part.name not in wanted:
                continue
            left = deadline - time.monotonic()
            if cut():
                result = Result(part, "FAILED (not begun)")
            elif left < LEAST_SECONDS:
                result = Result(part, "FAILED (no time left)")
            else:
                result = run(part, min(part.seconds, left), cut)
            results.append(result)
            print(result, flush=True)
        print("", *results, sep="\n", flush=True)
    return sum(result.verdict != "ok" for result in results)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
