"""How long Python takes for a decode step on a GPU, found without one: microseconds of CPU time a step.

    python dev/bench/host_step.py                                      64 and 256 rows, plain and with every option
    python dev/bench/host_step.py --rows 64 --workload decode64-options --profile

`LLM`, engine, scheduler, slots, graphs and sampler are the real ones, over tensors of the CPU; the model computes
nothing and the vocabulary is small. Launches of kernels are counted instead of made and a graph's replay does nothing,
so a step costs what the host does besides, less Triton's own launcher (some 15 microseconds a launch), CUDA's driver
and pinned memory. Compare figures of one machine only: run it before and after a change.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import pstats
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

from thranite.bench.shapes import QWEN3_06B
from thranite.bench.workloads import WORKLOADS
from thranite.engine.client import EngineInfo
from thranite.engine.engine import Engine
from thranite.engine.kv_groups import plan_kv_layout
from thranite.engine.settings import EngineSettings
from thranite.layers.communicator import Alone
from thranite.llm import LLM
from thranite.models.registry import load_spec
from thranite.models.spec import ModelSpec
from thranite.runner.cuda_executor import CudaExecutor
from thranite.runner.pretended_gpu import empty_graphs
from thranite.sampling_params import SamplingParams
from thranite_kernels.launch import Launch, recording
from thranite_kernels.target import Target, pretended

SMALL = {"vocab_size": 8192, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
PROMPT, OUTPUT = 16, 256
OUTPUTS = {"last_index_ptr": 0, "token_ptr": 1234}  # what kernels write that the host or torch reads
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class HostTime:
    """`micros`: CPU time a step of each run. `launches` a step, and full collections of garbage, over all runs."""

    micros: tuple[float, ...]
    launches: float
    collections: int


@contextmanager
def counted_launches() -> Iterator[Counter[str]]:
    """Kernels by name; within, nothing reaches a GPU, and graphs are captured on the CPU and replay nothing."""
    counts: Counter[str] = Counter()

    def count(launch: Launch) -> None:
        counts[launch.kernel.__name__] += 1
        for name, value in OUTPUTS.items():
            if name in launch.args:
                launch.args[name].fill_(value)

    with ExitStack() as stack:
        stack.enter_context(recording(count))
        stack.enter_context(pretended(Target(90, 132)))
        for owner, name, replacement in empty_graphs():
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield counts


class NoModel:
    """In a `Decoder`'s place: hidden states and logits are zeros that are there already."""

    dtype = torch.bfloat16

    def __init__(self, spec: ModelSpec, tokens: int, rows: int) -> None:
        self.communicator = Alone()
        self.spec = self.rank_spec = spec
        self._hidden = torch.zeros(tokens, spec.hidden_size, dtype=self.dtype)
        self._logits = torch.zeros(rows, spec.vocab_size, dtype=self.dtype)

    def __call__(
        self, input_ids: torch.Tensor, batch: object, attention: object, rows: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self._hidden[: len(input_ids if rows is None else rows)]

    def raw_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._logits[: len(hidden)]

    logits = raw_logits


def make_llm(rows: int) -> LLM:
    length = PROMPT + OUTPUT
    spec = load_spec({**QWEN3_06B, **SMALL}, dtype="bfloat16", max_model_len=length)
    settings = EngineSettings(
        layout=plan_kv_layout(spec, 16, "bfloat16"),
        num_blocks=rows * (length // 16 + 2) + 2,
        vocab_size=spec.vocab_size,
        max_model_len=length,
        max_num_seqs=rows,
        max_num_batched_tokens=8192,
        overlap=True,
    )
    model: Any = NoModel(spec, settings.max_num_batched_tokens, rows)
    executor = CudaExecutor(model, spec, settings, CPU, 256)
    executor.capture_graphs()
    info = EngineInfo(length, spec.vocab_size, rows, settings.num_blocks, 16, (), "", "bfloat16", 0)
    with (
        mock.patch("thranite.llm.build_engine", return_value=(Engine(settings, executor), info)),
        mock.patch.object(CudaExecutor, "prepare", return_value=False),
    ):
        return LLM("", skip_tokenizer_init=True)


def measure(rows: int, workload: str, runs: int, profile: bool) -> HostTime:
    with counted_launches() as counts:
        llm = make_llm(rows)
        if profile:
            run(llm, rows, workload, 0)
            profiler = cProfile.Profile()
            profiler.runcall(run, llm, rows, workload, 1)
            pstats.Stats(profiler, stream=sys.stderr).sort_stats("tottime").print_stats(45)
        counts.clear()
        gc.collect()
        before = gc.get_stats()[2]["collections"]
        micros = tuple(run(llm, rows, workload, number) for number in range(runs))
        collections = gc.get_stats()[2]["collections"] - before
    return HostTime(micros, counts.total() / runs / OUTPUT, collections)


def batch(rows: int, workload: str, number: int) -> tuple[list[Any], list[SamplingParams]]:
    """What `LLM.generate` takes."""
    prompts = [{"prompt_token_ids": [number, row, *range(10, PROMPT + 8)]} for row in range(rows)]
    return prompts, [WORKLOADS[workload].sampling(OUTPUT, row) for row in range(rows)]


def run(llm: LLM, rows: int, workload: str, number: int) -> float:
    """Microseconds a step."""
    prompts, params = batch(rows, workload, number)
    started = time.thread_time()
    outputs = llm.generate(prompts, params)
    seconds = time.thread_time() - started
    assert all(len(output.outputs[0].token_ids) == OUTPUT for output in outputs)
    return 1e6 * seconds / OUTPUT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, action="append", help="repeatable (default: 64 and 256)")
    parser.add_argument("--workload", action="append", choices=("decode64", "decode64-options"), help="default: both")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for rows in args.rows or (64, 256):
        for workload in args.workload or ("decode64", "decode64-options"):
            time_ = measure(rows, workload, args.runs, args.profile)
            each = ", ".join(f"{micros:.0f}" for micros in time_.micros)
            print(
                f"{rows} rows, {workload}: {min(time_.micros):.0f} us/step ({each}), {time_.launches:.1f} launches a "
                f"step, {time_.collections} full collections of garbage"
            )


if __name__ == "__main__":
    main()
