"""Compile a model's GPU kernels ahead, on any machine, so that engines need not when they start.

Neither a GPU nor weights are needed: config.json says which kernels an engine with these options launches on that kind
of GPU. They go to --into, a folder for --kernel-cache of `thranite serve`: in an image, or on a volume that pods share.
Compile with the versions of torch and Triton that will serve, as Triton's cache asks for.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from thranite.cli.flags import add_flags, build
from thranite.config import EngineConfig, option
from thranite.engine.build import engine_settings, read_spec
from thranite.errors import ConfigError, ExitCode
from thranite.loader.gpus import GPUS, check_capability, find_gpu, gpu
from thranite.loader.hub import resolve_model
from thranite.loader.plan import plan_memory
from thranite.models.partition import check_size

if TYPE_CHECKING:
    from thranite_kernels.variant import Variant

NOT_HERE = ("kernel_cache", "tokenizer", "load_format", "device")  # what has no part in what is compiled


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileConfig:
    gpu: str | None = option(None, f"the GPU to compile for: {', '.join(GPUS)}")
    multiprocessors: int | None = option(None, "multiprocessors of that GPU, if it is a variety with others")
    into: str | None = option(None, "folder for the compiled kernels (default: Triton's own cache)")
    jobs: int | None = option(None, "processes that compile (default: one a core)")

    def __post_init__(self) -> None:
        for name, value in (("multiprocessors", self.multiprocessors), ("jobs", self.jobs)):
            if value is not None and value < 1:
                raise ConfigError(f"--{name} must be 1 or more, got {value}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_flags(parser, EngineConfig, "engine", exclude=NOT_HERE)
    add_flags(parser, CompileConfig, "compilation")


def run(args: argparse.Namespace) -> int:
    config, asked = build(EngineConfig, args, os.environ), build(CompileConfig, args, os.environ)
    if asked.gpu is None:
        raise ConfigError("--gpu is missing", f"one of {', '.join(GPUS)}")
    name = find_gpu(asked.gpu)
    capability = GPUS[name].capability
    check_capability(name, capability)
    if asked.into is not None:
        Path(asked.into).mkdir(parents=True, exist_ok=True)
        os.environ["TRITON_CACHE_DIR"] = str(Path(asked.into).resolve())
    began = time.monotonic()
    variants = find_variants(config, name, asked.multiprocessors or GPUS[name].multiprocessors)
    compiled = sum(_compile(variants, capability, asked.jobs or os.cpu_count() or 1))
    print(
        f"{config.model} on {name}: {len(variants)} kernels, {compiled} of them compiled and "
        f"{len(variants) - compiled} there before; {time.monotonic() - began:.1f} s"
    )
    return ExitCode.OK


def find_variants(config: EngineConfig, name: str, multiprocessors: int) -> list[Variant]:
    """Those of all ranks of the engine that `thranite serve` would make on the GPU called `name`."""
    from thranite.attention.base import TORCH_DTYPES
    from thranite.layers.communicator import ALONE
    from thranite.parallel.pretended_ranks import PretendedRanks
    from thranite.runner.engine_variants import engine_variants
    from thranite_kernels.target import Target

    directory = resolve_model(config.model, revision=config.revision, weights=False)
    spec = read_spec(directory, config)
    size = config.tensor_parallel_size
    check_size(spec, size)
    plan = plan_memory(spec, config, gpu(name))
    spec = read_spec(directory, config, plan.max_model_len)
    settings, target = engine_settings(spec, plan, config), Target(GPUS[name].capability, multiprocessors)
    variants: dict[Variant, None] = {}
    for rank in range(size):
        ranks = partial(PretendedRanks, rank, size, multiprocessors=multiprocessors, peers=config.peer_all_reduce)
        dtype, join = TORCH_DTYPES[plan.dtype], (lambda device: ALONE) if size == 1 else ranks
        variants.update(dict.fromkeys(engine_variants(spec, settings, target, dtype, join, eager=config.enforce_eager)))
    return list(variants)


def _compile(variants: list[Variant], capability: int, jobs: int) -> Iterable[bool]:
    """Of each whether it had to be compiled. Processes start anew: a fork of one that has imported torch may hang."""
    from thranite_kernels.variant import compile_variant

    with ProcessPoolExecutor(min(jobs, len(variants)), get_context("spawn")) as pool:
        return list(pool.map(partial(compile_variant, capability=capability), variants))
