"""Run the reference workloads on random weights: tokens a second, step times, and how far they are from the floor.

MODEL is llama-8b, qwen3-0.6b (shapes that need no files) or a model directory; several run one after another.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thranite.bench.figures import Figures, show
from thranite.bench.floors import REFERENCE_GPU, VLLM, floor_seconds
from thranite.bench.shapes import SHAPES, write_model_directory
from thranite.bench.workloads import WORKLOADS, Workload
from thranite.errors import ThraniteError
from thranite.loader.model_config import read_model_config
from thranite.models.registry import load_spec
from thranite.sampling_params import SamplingParams

if TYPE_CHECKING:
    from thranite.llm import LLM

TEMPERATURE = 0.6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", nargs="*", default=list(SHAPES), help="default: both shapes")
    parser.add_argument(
        "--workload", action="append", choices=list(WORKLOADS), help="repeatable (default: all of them)"
    )
    parser.add_argument("--runs", type=int, default=3, help="runs a workload; the median counts (default: 3)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON instead of a table")
    engine = parser.add_argument_group("engine")
    engine.add_argument("--device", choices=("auto", "cuda", "cpu", "null"), default="auto")
    engine.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    engine.add_argument("--load-format", choices=("auto", "dummy"), default="dummy", help="default: random weights")
    engine.add_argument("--tensor-parallel-size", type=int, default=1)
    engine.add_argument("--gpu-memory-utilization", type=float, default=0.9)
    engine.add_argument("--max-model-len", type=int, help="default: what the workloads need")
    engine.add_argument("--max-num-seqs", type=int)
    engine.add_argument("--max-num-batched-tokens", type=int)
    engine.add_argument("--enforce-eager", action="store_true", help="without CUDA graphs")
    engine.add_argument("--no-overlap", dest="overlap", action="store_false", help="read a step before the next")


ENGINE_OPTIONS = (
    "device", "dtype", "load_format", "tensor_parallel_size", "gpu_memory_utilization", "max_num_seqs",
    "max_num_batched_tokens", "enforce_eager", "overlap",
)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    workloads = [WORKLOADS[name] for name in args.workload or WORKLOADS]
    figures: list[Figures] = []
    with tempfile.TemporaryDirectory(prefix="thranite-bench-") as scratch:
        for model in args.model:
            directory = write_model_directory(model, Path(scratch)) if model in SHAPES else Path(model)
            figures += measure_model(model, directory, workloads, args)
    if args.json:
        print(json.dumps({"machine": machine(args.device), "figures": [f.record() for f in figures]}, indent=2))
    else:
        show(figures, machine(args.device))
    return 0


def measure_model(
    model: str, directory: Path, workloads: Sequence[Workload], args: argparse.Namespace
) -> list[Figures]:
    """Load once, run every workload."""
    from thranite.llm import LLM

    options: dict[str, Any] = {name: getattr(args, name) for name in ENGINE_OPTIONS}
    options["max_model_len"] = args.max_model_len or max(workload.longest_sequence for workload in workloads)
    started = time.perf_counter()
    llm = LLM(str(directory), skip_tokenizer_init=True, **options)
    start_seconds = time.perf_counter() - started
    on_reference = REFERENCE_GPU in machine(args.device)["device"]
    spec = load_spec(read_model_config(str(directory), None).config, dtype=llm.info.dtype)
    measured = []
    try:
        warm_up(llm)
        for workload in workloads:
            seconds = [time_run(llm, workload, number) for number in range(args.runs)]
            gpus = args.tensor_parallel_size
            vllm = VLLM.get((gpus, model, workload.name)) if on_reference else None
            floor = floor_seconds(spec, workload, gpus) if on_reference else None
            measured.append(Figures(model, workload, tuple(seconds), start_seconds, floor, vllm))
            print(measured[-1].line(), file=sys.stderr, flush=True)
    finally:
        llm.close()
        gc.collect()  # the next model needs the memory
    return measured


def warm_up(llm: LLM) -> None:
    """One tiny request: what is set up at the first use is set up before the clock runs."""
    llm.generate({"prompt_token_ids": list(range(10, 20))}, _params(4))


def time_run(llm: LLM, workload: Workload, run: int) -> float:
    """Seconds from handing all requests over until the last result."""
    requests = workload.requests(run, llm.info.vocab_size)
    prompts: list[Any] = [{"prompt_token_ids": request.prompt_token_ids} for request in requests]
    params = [_params(request.output_tokens) for request in requests]
    started = time.perf_counter()
    outputs = llm.generate(prompts, params)
    seconds = time.perf_counter() - started
    for request, output in zip(requests, outputs, strict=True):
        produced = len(output.outputs[0].token_ids)
        if produced != request.output_tokens:
            raise ThraniteError(f"{workload.name}: {produced} tokens came where {request.output_tokens} were asked for")
    return seconds


def _params(output_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=TEMPERATURE, ignore_eos=True, max_tokens=output_tokens, detokenize=False)


def machine(device: str) -> dict[str, str]:
    """Where the figures come from. `device` as given on the command line."""
    import torch

    from thranite import __version__

    if device == "null":
        name = "null (tokens made up)"
    elif device == "cpu" or not torch.cuda.is_available():
        name = f"CPU, {torch.get_num_threads()} threads"
    else:
        name = torch.cuda.get_device_name()
    return {"device": name, "torch": torch.__version__, "thranite": __version__}
