"""Say from config.json alone whether a model fits a GPU, with the memory plan `thranite serve` would print.

No GPU, no weights and no torch are needed. The exit code is 0 if the model fits the GPU named by --gpu or
--gpu-memory, and 7 if it does not; without either, a table of common GPUs is printed.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass

from thranite.cli.flags import add_flags, build
from thranite.config import EngineConfig, option
from thranite.errors import ConfigError, DoesNotFit, ExitCode
from thranite.loader.device_memory import DeviceMemory, format_bytes, host_memory, null_memory, parse_bytes
from thranite.loader.gpus import GPUS, LEAST_CAPABILITY, check_capability, gpu, gpu_of
from thranite.loader.model_config import read_model_config
from thranite.loader.plan import plan_memory
from thranite.loader.plan_report import render
from thranite.models.partition import check_size
from thranite.models.registry import load_spec
from thranite.models.spec import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckConfig:
    gpu: str | None = option(None, f"one of {', '.join(GPUS)}")
    gpu_memory: str | None = option(None, "a GPU of this size, such as 80GB or 141GiB")

    def __post_init__(self) -> None:
        if self.gpu and self.gpu_memory:
            raise ConfigError("--gpu and --gpu-memory name two GPUs", "pass one of them")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_flags(parser, EngineConfig, "engine")
    add_flags(parser, CheckConfig, "which GPU")


def run(args: argparse.Namespace) -> int:
    config, asked = build(EngineConfig, args, os.environ), build(CheckConfig, args, os.environ)
    spec = read_spec(config)
    check_size(spec, config.tensor_parallel_size)
    if (device := _device(config, asked)) is not None:
        print(render(plan_memory(spec, config, device)))
        return ExitCode.OK
    return _print_table(spec, config)


def read_spec(config: EngineConfig) -> ModelSpec:
    files = read_model_config(config.model, config.revision)
    return load_spec(
        files.config,
        generation_config=files.generation_config,
        max_model_len=config.max_model_len,
        dtype=config.dtype,
    )


def _device(config: EngineConfig, asked: CheckConfig) -> DeviceMemory | None:
    """The device asked about; None: any GPU."""
    named = asked.gpu or asked.gpu_memory
    if named and config.device in ("cpu", "null"):
        raise ConfigError(f"--device {config.device} and a GPU contradict each other")
    if config.device == "cpu":
        return host_memory()
    if config.device == "null":
        return null_memory()
    if asked.gpu:
        device = gpu(asked.gpu)
        check_capability(device.name, GPUS[device.name].capability)
        return device
    return gpu_of(f"GPU of {asked.gpu_memory}", parse_bytes(asked.gpu_memory)) if asked.gpu_memory else None


def _print_table(spec: ModelSpec, config: EngineConfig) -> int:
    """One line a GPU. DOES_NOT_FIT if none holds the model."""
    print(f"{config.model}: {spec.architecture}, {spec.num_parameters / 1e9:.2f} billion parameters, {spec.dtype}")
    if config.tensor_parallel_size > 1:
        print(f"split over {config.tensor_parallel_size} GPUs; figures are for each")
    print(f"{'GPU':<12}{'memory':>12}{'KV cache':>12}{'longest':>10}{'at once':>9}")
    fits = False
    for name in GPUS:
        device = gpu(name)
        head = f"{name:<12}{format_bytes(device.total_bytes):>12}"
        if GPUS[name].capability < LEAST_CAPABILITY:
            print(f"{head}  no kernels")
            continue
        try:
            plan = plan_memory(spec, config, device)
        except DoesNotFit:
            print(f"{head}  does not fit")
            continue
        fits = True
        kv = format_bytes(plan.kv_cache_bytes)
        print(f"{head}{kv:>12}{plan.max_model_len:>10,}{plan.max_concurrency:>9,.1f}")
    print("longest: tokens of one sequence; at once: such sequences. --gpu NAME shows the arithmetic.")
    return ExitCode.OK if fits else ExitCode.DOES_NOT_FIT
