"""From an `EngineConfig` to an engine that is ready: find the model, plan memory, load, measure.

torch is imported only once a real device is wanted.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from thranite.config import EngineConfig
from thranite.engine.admission import QueueLimits
from thranite.engine.client import EngineInfo
from thranite.engine.engine import Engine
from thranite.engine.grammar import Grammars
from thranite.engine.null_executor import NullExecutor, NullPace
from thranite.engine.plan import Executor
from thranite.engine.progress import Progress
from thranite.engine.settings import EngineSettings
from thranite.engine.step_cost import StepCost
from thranite.loader.device_memory import DeviceMemory, host_memory, null_memory
from thranite.loader.hub import resolve_model
from thranite.loader.memory_needs import PROMPT_LOGPROB_ROWS
from thranite.loader.model_config import read_model_config
from thranite.loader.plan import MemoryPlan, plan_memory
from thranite.loader.plan_report import render
from thranite.loader.shortage import memory_taken
from thranite.models.partition import check_size, rank_spec
from thranite.models.registry import load_spec
from thranite.models.spec import ModelSpec

if TYPE_CHECKING:
    from thranite.models.decoder import Decoder
    from thranite.parallel.place import RankPlace
    from thranite.parallel.ranks import RankWatcher


def build_engine(
    config: EngineConfig, progress: Progress, watcher: RankWatcher | None = None
) -> tuple[Engine, EngineInfo]:
    """Raises StartupError with what to do if the model cannot be served as asked.

    `watcher` is told of lost ranks; without one, the engine's steps raise EngineDead.
    """
    progress.stage("find model")
    directory = resolve_model(config.model, revision=config.revision)
    spec = read_spec(directory, config)
    check_size(spec, config.tensor_parallel_size)
    progress.stage("plan memory")
    if config.device == "null":
        plan = plan_memory(spec, config, null_memory())
        executor: Executor = NullExecutor(
            engine_settings(spec, plan, config), NullPace.of(config), eos_token_ids=spec.eos_token_ids
        )
    elif config.tensor_parallel_size > 1:
        from thranite.parallel.rank_zero import build_ranks

        executor, spec, plan = build_ranks(directory, spec, config, progress, watcher)
    else:
        from thranite.parallel.place import RankPlace

        executor, spec, plan = build_device(directory, spec, config, progress, RankPlace())
    progress.note(render(plan))
    settings = engine_settings(spec, plan, config)
    return Engine(settings, executor), engine_info(spec, plan, config)


def read_spec(directory: Path, config: EngineConfig, max_model_len: int | None = None) -> ModelSpec:
    """The model's spec from its config.json; `max_model_len` fixes length-dependent rope scaling."""
    files = read_model_config(str(directory), None)
    return load_spec(
        files.config,
        generation_config=files.generation_config,
        max_model_len=max_model_len or config.max_model_len,
        dtype=config.dtype,
    )


def build_device(
    directory: Path, spec: ModelSpec, config: EngineConfig, progress: Progress, place: RankPlace
) -> tuple[Executor, ModelSpec, MemoryPlan]:
    """One rank's device with its part of the model. All ranks do this at once and agree on one plan.

    Raises DoesNotFit where the device has too little, or refuses what the plan counts on.
    """
    import torch

    try:
        return _build_device(directory, spec, config, progress, place)
    except torch.OutOfMemoryError as error:
        raise memory_taken(config, error) from error


def _build_device(
    directory: Path, spec: ModelSpec, config: EngineConfig, progress: Progress, place: RankPlace
) -> tuple[Executor, ModelSpec, MemoryPlan]:
    from thranite.attention.base import TORCH_DTYPES
    from thranite.loader.checkpoint import load_model
    from thranite.loader.kernel_cache import bring_kernels, triton_folder
    from thranite.runner.device import device_memory, pick_device
    from thranite.runner.executor import TorchExecutor

    device = pick_device(config.device, place.rank, place.size)
    memory = device_memory(device) if device.type == "cuda" else host_memory()
    communicator = place.join(device, peer_memory=config.peer_all_reduce)
    own_memory = memory
    total, available = communicator.least([memory.total_bytes, memory.available_bytes])
    memory = replace(memory, total_bytes=total, available_bytes=available)
    plan = plan_memory(spec, config, memory)
    spec = read_spec(directory, config, plan.max_model_len)
    progress.stage("load weights")
    model = load_model(
        spec,
        directory,
        dtype=TORCH_DTYPES[plan.dtype],
        device=device,
        load_format=config.load_format,
        progress=progress.advance,
        communicator=communicator,
    )
    if device.type == "cuda":
        if config.kernel_cache is not None:
            progress.stage("bring kernels")
            bring_kernels(Path(config.kernel_cache), triton_folder())
        executor, plan = _build_cuda(model, spec, config, plan, progress, own_memory)
        return executor, spec, plan
    if config.kernel_cache is not None:
        progress.note(f"no use of {config.kernel_cache}: its kernels are for GPUs")
    progress.stage("allocate KV cache")
    settings = engine_settings(spec, plan, config)
    return TorchExecutor(model, model.rank_spec, settings, device, PROMPT_LOGPROB_ROWS), spec, plan


def _build_cuda(
    model: Decoder,
    spec: ModelSpec,
    config: EngineConfig,
    plan: MemoryPlan,
    progress: Progress,
    before: DeviceMemory,
) -> tuple[Executor, MemoryPlan]:
    """Measure what a step takes, give the rest to the KV cache, capture the graphs. `before`: the device's
    figures when nothing was loaded."""
    import torch

    from thranite.runner.cuda_executor import CudaExecutor
    from thranite.runner.cuda_profile import held_by_others, measure_activations

    device = torch.device("cuda", torch.cuda.current_device())

    def make(settings: EngineSettings) -> CudaExecutor:
        return CudaExecutor(model, model.rank_spec, settings, device, PROMPT_LOGPROB_ROWS, eager=config.enforce_eager)

    progress.stage("measure activations")
    others = held_by_others(before)
    measured = measure_activations(
        make, engine_settings(spec, plan, config), model.rank_spec, device, others, config.enforce_eager
    )
    measured = -model.communicator.least([-measured])[0]
    plan = plan_memory(spec, config, plan.device, measured_activation_bytes=measured, longest=plan.max_model_len)
    progress.stage("allocate KV cache")
    executor = make(engine_settings(spec, plan, config))
    progress.stage("capture graphs")
    executor.capture_graphs()
    progress.stage("warm up")
    executor.warm_up()
    return executor, plan


def engine_settings(spec: ModelSpec, plan: MemoryPlan, config: EngineConfig) -> EngineSettings:
    """The engine's limits under a plan. Overlap pays only where launching is not computing."""
    target = config.target_inter_token_latency_ms
    return EngineSettings(
        layout=plan.layout,
        num_blocks=plan.num_blocks,
        vocab_size=spec.vocab_size,
        max_model_len=plan.max_model_len,
        max_num_seqs=plan.max_num_seqs,
        max_num_batched_tokens=plan.max_num_batched_tokens,
        enable_prefix_caching=config.enable_prefix_caching,
        overlap=config.overlap and plan.device.kind != "cpu",
        priority_aging_seconds=config.priority_aging_seconds,
        max_waiting_requests=config.max_waiting_requests,
        max_waiting_tokens=config.max_waiting_tokens,
        high_priority_share=config.high_priority_share,
        target_inter_token_seconds=None if target is None else target / 1000,
        prompt_time_ratio=config.prompt_time_ratio or 0.0,
        seed=config.seed,
        step_cost=StepCost.of(rank_spec(spec, config.tensor_parallel_size)),
        grammars=None if config.skip_tokenizer_init else Grammars.of(config, spec),
    )


def engine_info(spec: ModelSpec, plan: MemoryPlan, config: EngineConfig) -> EngineInfo:
    """What servers need to know."""
    return EngineInfo(
        max_model_len=plan.max_model_len,
        vocab_size=spec.vocab_size,
        max_num_seqs=plan.max_num_seqs,
        num_kv_blocks=plan.num_blocks,
        block_size=plan.block_size,
        eos_token_ids=spec.eos_token_ids,
        architecture=spec.architecture,
        dtype=plan.dtype,
        seed=config.seed,
        queue_limits=QueueLimits(config.max_waiting_requests, config.max_waiting_tokens, config.high_priority_share),
    )
