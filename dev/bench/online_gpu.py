"""`thranite serve` on one GPU with random weights: what its clients see, against the bars; or a soak.

    python dev/bench/online_gpu.py [--model llama-8b] [--runs 16:320,…] [-- options of thranite serve]
    python dev/bench/online_gpu.py --soak 120

The load is `thranite bench serve`'s. A bar holds if the mean of a rate's runs meets it; a run with a failed request
does not count. Below each run stands what the engine and the processes say of it. `--model tiny --device cpu` (or null)
tries all of this where there is no GPU. Exit code 0: every bar holds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from online_bars import judge, verdict_table
from online_inside import Inside, look
from serve_null import write_model, write_tokenizer
from serve_process import Server, served
from serve_soak import PACE, report, soak, soak_options

from thranite.bench.online_figures import OnlineFigures, row, table
from thranite.bench.serve import REFERENCE_RUNS, WARM_UP, Load, Run, measure, parse_runs
from thranite.bench.shapes import SHAPES, write_model_directory

TINY = "tiny"
LARGEST_ID = 100_000  # of prompts, as the reference load has it
START_SECONDS = 270.0  # with Triton's cache empty
KV_BYTES = {"cuda": 2, "cpu": 4, "null": 4}  # a value, in the model's dtype there


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[*SHAPES, TINY], default="llama-8b")
    parser.add_argument("--device", choices=list(KV_BYTES), default="cuda")
    parser.add_argument("--runs", default=REFERENCE_RUNS, help=f"RATE:COUNT,… (default: {REFERENCE_RUNS})")
    parser.add_argument("--processes", type=int, default=4, help="client processes")
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="soak instead of measuring")
    parser.add_argument("serve", nargs="*", metavar="-- OPTION", help="further options of thranite serve")
    args = parser.parse_args()
    runs = parse_runs(args.runs, args.processes)
    print(f"{args.model} on {device_name(args.device)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="thranite-online-") as scratch:
        model = make_model(args.model, Path(scratch))
        config = json.loads((model / "config.json").read_text())
        with served(model, args.model, Path(scratch), options(args, config), START_SECONDS) as server:
            startup(server)
            if args.soak is not None:
                return report(soak(server, args.soak, requests=0))
            vocab = min(LARGEST_ID, config["vocab_size"])
            code = online(server, Load(server.target.host, server.target.port, args.model, args.processes, vocab), runs)
            return code or ended(server)


def make_model(name: str, parent: Path) -> Path:
    """Its config and a tokenizer of its vocabulary; the weights are random."""
    if name == TINY:
        return write_model(parent / name)
    directory = write_model_directory(name, parent)
    write_tokenizer(directory, SHAPES[name]["vocab_size"], SHAPES[name]["eos_token_id"])
    return directory


def options(args: argparse.Namespace, config: dict[str, Any]) -> list[str]:
    of_load = ["--max-model-len", "4096"] if args.soak is None else soak_options(config, KV_BYTES[args.device])
    pace = PACE if args.device == "null" else []
    return ["--device", args.device, "--load-format", "dummy", *of_load, *pace, *args.serve]


def startup(server: Server) -> None:
    """The log's beginning: the memory plan and the stages of the start."""
    print(server.log(), flush=True)


def online(server: Server, load: Load, runs: Sequence[Run]) -> int:
    """Measure and print every run as it ends; then the bars."""
    measured: list[OnlineFigures] = []
    for place, (rate, count) in enumerate([WARM_UP, *runs]):
        before = look(server)
        result = measure(load, place, rate, count)
        inside = Inside.between(before, look(server))
        measured.append(result)
        print(" | ".join(row(result)), result.first_error or "", flush=True)
        print("    " + inside.line(), flush=True)
    print(table(measured[1:]))
    bars = judge(measured[1:]) if load.model == "llama-8b" else []
    print(verdict_table(bars))
    failed = any(result.failed for result in measured)
    return int(failed or not all(bar.holds for bar in bars))


def ended(server: Server) -> int:
    code = server.stop()
    if code:
        print(f"the server ended with {code}:\n{server.log()[-4000:]}")
    return code


def device_name(device: str) -> str:
    if device != "cuda":
        return device
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
