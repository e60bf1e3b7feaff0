"""Building an engine over several ranks: start the others, build rank 0's part in step with them.

torch is imported once the others are started where it can be: theirs takes as long.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from thranite.config import EngineConfig
from thranite.engine.progress import Progress
from thranite.errors import ThraniteError
from thranite.models.partition import possible_sizes
from thranite.models.spec import ModelSpec
from thranite.parallel.cuda_driver import gpu_count
from thranite.parallel.executor import ParallelExecutor
from thranite.parallel.place import RankPlace
from thranite.parallel.rank_messages import RankStart
from thranite.parallel.ranks import CAUSE_SECONDS, Ranks, RankWatcher, rendezvous
from thranite.parallel.step_clock import StepClock

if TYPE_CHECKING:
    from thranite.engine.plan import Executor
    from thranite.loader.plan import MemoryPlan


def build_ranks(
    directory: Path, spec: ModelSpec, config: EngineConfig, progress: Progress, watcher: RankWatcher | None
) -> tuple[Executor, ModelSpec, MemoryPlan]:
    """As `thranite.engine.build.build_device`, over `config.tensor_parallel_size` ranks."""
    progress.stage("start ranks")
    clock = StepClock()
    early = config.device != "cpu" and gpu_count() >= config.tensor_parallel_size
    ranks = Ranks(_start(directory, config, None), watcher, clock) if early else None

    try:
        return _build(directory, spec, config, progress, ranks, clock, watcher)
    except BaseException:
        if ranks is not None:
            ranks.close()
        raise


def _build(
    directory: Path,
    spec: ModelSpec,
    config: EngineConfig,
    progress: Progress,
    ranks: Ranks | None,
    clock: StepClock,
    watcher: RankWatcher | None,
) -> tuple[Executor, ModelSpec, MemoryPlan]:
    """`ranks`: started already, on GPUs."""
    import torch

    from thranite.runner.device import check_gpus, uses_gpus

    threads_before, threads = torch.get_num_threads(), None
    if not uses_gpus(config.device):
        if ranks is not None:  # a torch that does not see the driver's GPUs
            ranks.close()
            ranks = None
        threads = max(threads_before // config.tensor_parallel_size, 1)
    if threads is None:
        check_gpus(config.tensor_parallel_size, possible_sizes(spec))
    if ranks is None:
        ranks = Ranks(_start(directory, config, threads), watcher, clock)
    if threads is not None:
        torch.set_num_threads(threads)  # ranks share the cores
    own, spec, plan = _build_own(ranks, spec, config, progress)
    communicator = ranks.communicator
    assert communicator is not None
    closed = partial(torch.set_num_threads, threads_before)
    return ParallelExecutor(own, ranks, communicator, clock, closed), spec, plan


def _start(directory: Path, config: EngineConfig, threads: int | None) -> RankStart:
    """`threads`: None on GPUs."""
    return RankStart(
        config=replace(config, device="cuda" if threads is None else "cpu", skip_tokenizer_init=True),
        directory=str(directory),
        rank=0,
        size=config.tensor_parallel_size,
        store=str(rendezvous()),
        threads=threads,
    )


def _build_own(
    ranks: Ranks, spec: ModelSpec, config: EngineConfig, progress: Progress
) -> tuple[Executor, ModelSpec, MemoryPlan]:
    """Rank 0's part; whatever fails on any rank ends all."""
    from thranite.engine.build import build_device

    start = ranks.start
    place = RankPlace(0, start.size, start.store, ranks.wait_arrived, ranks.join)
    try:
        built = build_device(Path(start.directory), spec, config, progress, place)
        progress.stage("wait for ranks")
        ranks.wait_ready()
    except Exception as error:
        failure = None if isinstance(error, ThraniteError) else ranks.failure_within(CAUSE_SECONDS)
        ranks.give_up()
        if failure is None:
            raise
        raise failure from error
    except BaseException:  # interrupted
        ranks.give_up()
        raise
    ranks.forget_rendezvous()
    return built
