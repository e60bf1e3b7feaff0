"""About how long a step takes on a GPU, before one was measured: what sizes of steps are compared by.

Attention aside, which takes as long for a batch however its tokens are spread over steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import hypot
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thranite.models.spec import ModelSpec

BYTES_PER_SECOND = 4.3e12  # of weights, two bytes each: an H200's memory
FLOPS_PER_SECOND = 620e12  # of products at its power limit, in bf16
LAYER_SECONDS = 30e-6  # of a layer's norms, gaps between kernels, and its part of the head
PROMPTS_SECONDS = 15e-6  # of a layer, where a step has prompts besides


@dataclass(frozen=True, slots=True)
class StepCost:
    """Seconds: of a step of few tokens, of one token among many, and of a step with prompts besides.

    The estimate is 12 % below to 5 % above llama-8b's steps of 14 to 1,024 tokens on an H200, and for Qwen3-0.6B up to
    27 % below. Two bytes a weight, and nothing for sums over ranks.
    """

    floor: float
    token: float
    prompts: float

    @classmethod
    def of(cls, spec: ModelSpec) -> StepCost:
        """An H200's, for a rank's part of a model. How the three compare differs less from GPU to GPU than they do."""
        layers = len(spec.layers)
        return cls(
            floor=layers * LAYER_SECONDS + 2 * spec.layers_parameters / BYTES_PER_SECOND,
            token=2 * spec.layers_parameters / FLOPS_PER_SECOND,
            prompts=layers * PROMPTS_SECONDS,
        )

    def seconds(self, tokens: float) -> float:
        """Without prompts. Convex: about `floor` for few tokens, and proportional to them for many."""
        return hypot(self.floor, self.token * tokens)
