"""Which steps with prompts have CUDA graphs, by their tokens: a policy, pure arithmetic.

Launching a layer kernel by kernel takes the host LAUNCH_SECONDS, computing it takes the device as long as its products.
Sizes up to 1,024 tokens lie close together. Larger ones are for models whose layers are computed about as fast as they
are launched, and fewer.
"""

from __future__ import annotations

from collections.abc import Sequence

from thranite.engine.settings import EngineSettings
from thranite.models.spec import ModelSpec
from thranite.runner.step_shape import StepShape

SMALL_SIZES = (32, *range(64, 1025, 64))  # tokens: all are there at Ready
LARGE_SPACING = 512  # tokens between two of the sizes beyond
SMALL_DECODES = 256  # rows in a small size: each takes an idle program of every layer's attention for each KV head
FEWEST_PROMPTS, MOST_PROMPTS, PROMPT_SHARE = 8, 128, 32  # a size has a row for every 32 tokens within these bounds
LAUNCH_SECONDS = 0.4e-3  # of the host, for a layer of an eager step
HIDING_SECONDS = 1.0e-3  # of the device, for a layer: launching has long been hidden behind that
SPARE_SECONDS = 0.1e-3  # that a layer's padding may add to what the step takes without a graph
FLOPS_PER_SECOND = 700e12  # of products of many rows: an H200's in bf16


def mixed_shapes(settings: EngineSettings, spec: ModelSpec) -> list[StepShape]:
    """All that an engine captures, least tokens first. `spec`: of one rank."""
    budget = min(settings.max_num_batched_tokens, settings.max_num_seqs * settings.max_model_len)
    sizes = [size for size in SMALL_SIZES if size < budget]
    if budget <= SMALL_SIZES[-1]:
        sizes.append(budget)
    else:
        larger = [*range(SMALL_SIZES[-1] + LARGE_SPACING, budget, LARGE_SPACING), budget]
        sizes += [size for size in larger if size * layer_seconds(spec) < HIDING_SECONDS]
    return [_shape(size, settings) for size in sizes]


def ready_shapes(shapes: Sequence[StepShape]) -> list[StepShape]:
    """Those of `mixed_shapes` that an engine needs to be ready: of the larger ones powers of two, and the largest, in
    whose memory all others fit."""
    return [
        shape
        for shape in shapes
        if shape.tokens <= SMALL_SIZES[-1] or shape.tokens.bit_count() == 1 or shape.tokens == shapes[-1].tokens
    ]


def pays(seconds: float, padded: int, tokens: int) -> bool:
    """Whether a step of `tokens` is no slower as a graph of `padded` tokens than without one.

    `seconds`: of a layer for a token.
    """
    return padded * seconds <= max(LAUNCH_SECONDS, tokens * seconds) + SPARE_SECONDS


def layer_seconds(spec: ModelSpec) -> float:
    """What the products of one layer of a rank take for a token of many, two operations a weight."""
    return 2 * spec.layers_parameters / len(spec.layers) / FLOPS_PER_SECOND


def _shape(tokens: int, settings: EngineSettings) -> StepShape:
    decodes = min(tokens, settings.most_decodes)
    if tokens <= SMALL_SIZES[-1]:
        decodes = min(decodes, SMALL_DECODES)
    prompts = min(max(tokens // PROMPT_SHARE, FEWEST_PROMPTS), MOST_PROMPTS, settings.max_num_seqs)
    return StepShape(decodes, prompts, decodes + prompts, tokens)
