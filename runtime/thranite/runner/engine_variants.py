"""Which variants of kernels an engine on a GPU needs, found without one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from thranite.engine.kv_groups import KVLayout
from thranite.engine.settings import EngineSettings
from thranite.layers.communicator import Communicator
from thranite.loader.memory_needs import PROMPT_LOGPROB_ROWS
from thranite.models.decoder import Decoder
from thranite.models.spec import LayerSpec, ModelSpec
from thranite.runner.cuda_executor import CudaExecutor
from thranite.runner.cuda_profile import largest_step
from thranite.runner.pretended_gpu import DEVICE, pretended_gpu
from thranite_kernels.target import Target
from thranite_kernels.variant import Variant

LAYERS_OF_A_KIND = 2
STARTED_ROWS = 16  # of the largest step: more need the same variants, and minutes here
Join = Callable[[torch.device], Communicator]


def engine_variants(
    spec: ModelSpec,
    settings: EngineSettings,
    target: Target,
    dtype: torch.dtype,
    join: Join,
    *,
    eager: bool = False,
) -> list[Variant]:
    """All that one rank launches from its start on, whatever it is asked for later. `spec` is the whole model's.

    It makes the engine on a pretended GPU and does there what a start does: the largest step, every graph, warming up.
    (`tests/runtime/runner/test_cuda_specialisations.py` holds warming up to leaving nothing for later.) Two layers of a
    kind launch what all do: the first layer's norm has no residual.
    """
    kept = _two_of_each_kind(spec.layers)
    spec = replace(spec, layers=tuple(spec.layers[layer] for layer in kept))
    settings = replace(settings, layout=_without_others(settings.layout, kept))
    with pretended_gpu(target) as variants:
        model = Decoder(spec, dtype, DEVICE, communicator=join(DEVICE))
        executor = CudaExecutor(model, model.rank_spec, settings, DEVICE, PROMPT_LOGPROB_ROWS, eager=eager)
        executor.launch(largest_step(replace(settings, max_num_seqs=min(settings.max_num_seqs, STARTED_ROWS))))
        executor.sample({})
        executor.collect()
        executor.capture()
        return list(variants)


def _two_of_each_kind(layers: Sequence[LayerSpec]) -> list[int]:
    seen: Counter[LayerSpec] = Counter()
    kept = []
    for index, layer in enumerate(layers):
        if seen[layer] < LAYERS_OF_A_KIND:
            kept.append(index)
        seen[layer] += 1
    return kept


def _without_others(layout: KVLayout, kept: list[int]) -> KVLayout:
    """The same groups and pages with the kept layers alone, numbered anew."""
    number = {layer: index for index, layer in enumerate(kept)}
    groups = tuple(
        replace(group, layers=tuple(None if layer is None else number.get(layer) for layer in group.layers))
        for group in layout.groups
    )
    return replace(layout, groups=groups)
