"""Run the reference workloads on random weights: tokens a second, step times, and how far they are from the floor.

MODEL is llama-8b, qwen3-0.6b (shapes that need no files) or a model directory; several run one after another. Nothing
warms the engine up: the first run after Ready counts. On a GPU one more, shortened run under a profiler tells where a
step's time goes.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thranite.bench.figures import Figures, show
from thranite.bench.floors import REFERENCE_GPU, VLLM, floor_seconds
from thranite.bench.shapes import SHAPES, write_model_directory
from thranite.bench.start_time import StartTimes, seconds_since_exec
from thranite.bench.step_parts import StepParts, profile_run
from thranite.bench.workloads import WORKLOADS, Workload
from thranite.errors import ConfigError, ThraniteError
from thranite.loader.model_config import read_model_config
from thranite.models.registry import load_spec

if TYPE_CHECKING:
    from thranite.llm import LLM
    from thranite_kernels.compilations import CompiledAnew


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", nargs="*", default=list(SHAPES), help="default: both shapes")
    parser.add_argument(
        "--workload", action="append", choices=list(WORKLOADS), help="repeatable (default: all of them)"
    )
    parser.add_argument(
        "--rows", type=_rows, metavar="MODEL/WORKLOAD,…", help="only these rows, in place of MODEL and --workload"
    )
    parser.add_argument("--profile", type=Path, metavar="FOLDER", help="write a trace of each row for chrome://tracing")
    parser.add_argument("--runs", type=int, default=3, help="runs a workload; the median counts (default: 3)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON instead of a table")
    engine = parser.add_argument_group("engine")
    engine.add_argument("--max-model-len", type=int, help="default: what the workloads need")
    add_engine_arguments(engine)


def add_engine_arguments(engine: argparse._ArgumentGroup) -> None:
    """What `load` takes, but for the model's length."""
    engine.add_argument("--device", choices=("auto", "cuda", "cpu", "null"), default="auto")
    engine.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    engine.add_argument("--load-format", choices=("auto", "dummy"), default="dummy", help="default: random weights")
    engine.add_argument("--tensor-parallel-size", type=int, default=1)
    engine.add_argument("--gpu-memory-utilization", type=float, default=0.9)
    engine.add_argument("--max-num-seqs", type=int)
    engine.add_argument("--max-num-batched-tokens", type=int)
    engine.add_argument("--kernel-cache", metavar="FOLDER", help="kernels that `thranite compile --into` made")
    engine.add_argument("--enforce-eager", action="store_true", help="without CUDA graphs")
    engine.add_argument(
        "--no-peer-all-reduce", dest="peer_all_reduce", action="store_false", help="sum over ranks through NCCL alone"
    )
    engine.add_argument("--no-overlap", dest="overlap", action="store_false", help="read a step before the next")


ENGINE_OPTIONS = (
    "device", "dtype", "load_format", "tensor_parallel_size", "gpu_memory_utilization", "max_num_seqs",
    "max_num_batched_tokens", "enforce_eager", "kernel_cache", "peer_all_reduce", "overlap",
)  # fmt: skip


def _rows(text: str) -> dict[str, list[str]]:
    """Workloads by model."""
    found: dict[str, list[str]] = {}
    for row in text.split(","):
        model, slash, workload = row.strip().rpartition("/")
        if not slash or workload not in WORKLOADS:
            known = ", ".join(WORKLOADS)
            raise argparse.ArgumentTypeError(f"{row!r} is not MODEL/WORKLOAD with one of the workloads {known}")
        found.setdefault(model, []).append(workload)
    return found


def run(args: argparse.Namespace) -> int:
    if args.runs < 1:
        raise ConfigError(f"--runs must be at least 1, got {args.runs}")
    rows = args.rows or {model: args.workload or list(WORKLOADS) for model in args.model}
    figures: list[Figures] = []
    starts: dict[str, StartTimes] = {}
    if args.profile:
        if not on_gpu(args.device):
            raise ConfigError("--profile traces a GPU's kernels, and none is used here", "leave --profile out")
        args.profile.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="thranite-bench-") as scratch:
        for model, names in rows.items():
            directory = write_model_directory(model, Path(scratch)) if model in SHAPES else Path(model)
            starts[model] = StartTimes(None if starts else seconds_since_exec())
            figures += measure_model(model, directory, [WORKLOADS[name] for name in names], args, starts[model])
    if args.json:
        print(json.dumps({"machine": machine(args.device), "figures": [f.record() for f in figures]}, indent=2))
    else:
        show(figures, machine(args.device), {model: start.line() for model, start in starts.items()})
    return 0


def measure_model(
    model: str, directory: Path, workloads: Sequence[Workload], args: argparse.Namespace, start: StartTimes
) -> list[Figures]:
    """Load once, run every workload."""
    llm = load(directory, args, max(workload.longest_sequence for workload in workloads), start)
    print(f"{model}: {start.line()}", file=sys.stderr, flush=True)
    on_reference = REFERENCE_GPU in machine(args.device)["device"].split()  # a GH200 is another
    spec = load_spec(read_model_config(str(directory), None).config, dtype=llm.info.dtype)
    measured = []
    try:
        for workload in workloads:
            seconds, compiled = time_runs(llm, workload, args.runs)
            gpus = args.tensor_parallel_size
            vllm = VLLM.get((gpus, model, workload.name)) if on_reference else None
            floor = floor_seconds(spec, workload, gpus) if on_reference else None
            parts = step_parts(llm, model, workload, args)
            measured.append(Figures(model, workload, seconds, start.ready_seconds, floor, vllm, compiled, parts))
            print(measured[-1].line(), file=sys.stderr, flush=True)
    finally:
        llm.close()
        gc.collect()  # the next model needs the memory
    return measured


def load(directory: Path, args: argparse.Namespace, longest_sequence: int, start: StartTimes) -> LLM:
    """The engine, ready; `start` receives how long it took."""
    from thranite.llm import LLM

    options: dict[str, Any] = {name: getattr(args, name) for name in ENGINE_OPTIONS}
    options["max_model_len"] = args.max_model_len or longest_sequence
    if start.imports is not None:
        start.imports = seconds_since_exec()  # torch's import lies in between
    with _compiled_anew() if on_gpu(args.device) else nullcontext() as compiled:
        llm = LLM(str(directory), skip_tokenizer_init=True, progress=start, **options)
    start.finish()
    start.compiled = None if compiled is None else compiled.count
    return llm


def _compiled_anew() -> CompiledAnew:
    from thranite_kernels.compilations import CompiledAnew

    return CompiledAnew()


def time_runs(llm: LLM, workload: Workload, runs: int) -> tuple[tuple[float, ...], int]:
    """Seconds of each run, and how many kernels Triton compiled meanwhile."""
    from thranite_kernels.compilations import Compilations

    with Compilations() as compiled:
        seconds = tuple(time_run(llm, workload, number) for number in range(runs))
    for kernel in compiled.kernels:
        print(f"{workload.name}: compiled after Ready: {kernel}", file=sys.stderr)
    return seconds, len(compiled.kernels)


def step_parts(llm: LLM, model: str, workload: Workload, args: argparse.Namespace) -> StepParts | None:
    """None where there is no GPU to look at."""
    if not on_gpu(args.device):
        return None
    trace = args.profile / f"{Path(model).name}-{workload.name}.json" if args.profile else None
    return profile_run(llm, workload, args.runs, trace)


def time_run(llm: LLM, workload: Workload, run: int) -> float:
    """Seconds from handing all requests over until the last result."""
    prompts, params = workload.batch(run, llm.info.vocab_size)
    started = time.perf_counter()
    outputs = llm.generate(prompts, params)
    seconds = time.perf_counter() - started
    for asked, output in zip(params, outputs, strict=True):
        produced = len(output.outputs[0].token_ids)
        if produced != asked.max_tokens:
            raise ThraniteError(f"{workload.name}: {produced} tokens came where {asked.max_tokens} were asked for")
    return seconds


def on_gpu(device: str) -> bool:
    """Whether a run on `device`, as given on the command line, uses a GPU."""
    import torch

    return device not in ("cpu", "null") and torch.cuda.is_available()


def machine(device: str) -> dict[str, str]:
    """Where the figures come from. `device` as given on the command line."""
    import torch

    from thranite import __version__

    if device == "null":
        name = "null (tokens made up)"
    elif not on_gpu(device):
        name = f"CPU, {torch.get_num_threads()} threads"
    else:
        name = torch.cuda.get_device_name()
    return {"device": name, "torch": torch.__version__, "thranite": __version__}
