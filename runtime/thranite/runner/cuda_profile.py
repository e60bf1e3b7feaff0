"""How much memory an engine takes of a GPU beyond weights and KV cache: measured by running the largest step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from thranite.engine.plan import Prefill, SlotStart, StepPlan
from thranite.engine.settings import EngineSettings
from thranite.loader.device_memory import DeviceMemory
from thranite.loader.memory_needs import CUDA_RESERVE, PROMPT_LOGPROB_ROWS
from thranite.loader.plan import NULL_PAGES
from thranite.models.spec import ModelSpec
from thranite.runner.cuda_executor import CudaExecutor
from thranite.runner.cuda_graphs import graph_sizes
from thranite.runner.mixed_shapes import mixed_shapes
from thranite.sampling_params import MAX_LOGPROBS, TokenParams

GRAPH_LAYER = 320 * 1024  # bytes that the driver keeps for a layer of a graph: about 10 MB for 32
GRAPH_WORKSPACES = 64 << 20  # cuBLAS's and cuBLASLt's, once more for the stream that is captured


def held_by_others(memory: DeviceMemory) -> int:
    """Bytes of a GPU that other processes hold, from its figures before this process loaded anything.

    Its context counts among what is held then: what the plan reserves for that is taken as its own.
    """
    return max(memory.total_bytes - memory.available_bytes - CUDA_RESERVE, 0)


def measure_activations(
    make: Callable[[EngineSettings], CudaExecutor],
    settings: EngineSettings,
    spec: ModelSpec,
    device: torch.device,
    others: int,
    eager: bool,
) -> int:
    """Peak bytes of a step that fills the token budget and samples in every slot, with every kind of option.

    Counts what the whole process took on the device beyond weights and pages: the slots' state and the sampler's, the
    step, libraries' workspaces, context, and what graphs will take unless `eager`. `spec`: of one rank. `others`: bytes
    that other processes hold. Beside the weights there may be no room for the pages of so many sequences, so there are
    none: block tables are empty, as those of a warm-up.
    """
    plan = largest_step(settings)
    before = torch.cuda.memory_allocated(device)
    executor = make(dataclasses.replace(settings, num_blocks=NULL_PAGES + 1))
    torch.cuda.synchronize(device)
    held = torch.cuda.memory_allocated(device)
    state = held - before - executor.cache.held_bytes
    layers, peak = (_peak(executor, each, device) - held for each in (without_samples(plan), plan))
    torch.cuda.synchronize(device)
    free, total = torch.cuda.mem_get_info(device)
    outside = max(total - free - torch.cuda.memory_reserved(device) - others, 0)  # context, library workspaces
    executor.close()
    del executor
    torch.cuda.empty_cache()
    return state + peak + outside + (0 if eager else graph_reserve(settings, spec, layers // plan.num_tokens))


def _peak(executor: CudaExecutor, plan: StepPlan, device: torch.device) -> int:
    """Bytes allocated at most while the step runs."""
    torch.cuda.reset_peak_memory_stats(device)
    executor.launch(plan)
    executor.sample({})
    executor.collect()
    return torch.cuda.max_memory_allocated(device)


def graph_reserve(settings: EngineSettings, spec: ModelSpec, token: int) -> int:
    """Bytes of all graphs. `token`: what the layers take for each token of a step.

    Each kind has a pool as large as its largest graph; beside them are each decode graph's output, workspaces, and what
    the driver keeps.
    """
    decode, mixed = graph_sizes(settings.most_decodes), mixed_shapes(settings, spec)
    pools = token * (decode[-1] + mixed[-1].tokens)
    outputs = sum(decode) * spec.hidden_size * 4
    driver = (len(decode) + len(mixed)) * len(spec.layers) * GRAPH_LAYER
    return pools + outputs + GRAPH_WORKSPACES + driver


def without_samples(plan: StepPlan) -> StepPlan:
    """The same tokens, of which nothing is asked: layers alone."""
    prefills = [Prefill(prefill.slot, prefill.start, prefill.token_ids, ()) for prefill in plan.prefills]
    return dataclasses.replace(plan, prefills=prefills)


def largest_step(settings: EngineSettings) -> StepPlan:
    """Prefills that fill the token budget, over as many slots as there are; each samples, and the first is scored.
    Their block tables are empty: all that they write goes to the null page."""
    params = TokenParams(
        max_tokens=1, seed=0, temperature=0.8, top_p=0.9, top_k=50, min_p=0.01, repetition_penalty=1.1, logprobs=1,
        logit_bias=((0, 0.0),),
    )  # fmt: skip
    starts, prefills = [], []
    for slot, count in enumerate(prompt_lengths(settings)):
        tokens = [(slot + i) % settings.vocab_size for i in range(count)]
        scores = min(MAX_LOGPROBS, settings.vocab_size) if slot == 0 and count > 1 else None
        starts.append(SlotStart(slot, 0, params, tokens, count, 0))
        prefills.append(Prefill(slot, 0, tokens, (slot,), scores, () if scores is None else tokens[1:]))
    return StepPlan(step=0, prefills=prefills, starts=starts)


def prompt_lengths(settings: EngineSettings) -> list[int]:
    """As many tokens as a step may have, over as many slots as there are. The first prompt has a whole slice to score,
    if there is room for one; the others are as long as each other."""
    budget, longest = settings.max_num_batched_tokens, settings.max_model_len - 1
    others = min(settings.max_num_seqs, budget) - 1
    first = min(PROMPT_LOGPROB_ROWS + 1, budget - others) if others else budget
    counts = [(budget - first + index) // others for index in range(others)]
    return [min(count, longest) for count in (first, *counts)]
