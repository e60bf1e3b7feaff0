"""Random-normal weights, the same whatever the number of ranks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from thranite.layers.embedding import Embedding
from thranite.layers.linear import Linear
from thranite.layers.norm import RMSNorm
from thranite.models.decoder import Decoder
from thranite.models.weights import Target, embedding_target, linear_parameters, stacked_target


def draw_dummy_weights(decoder: Decoder, seed: int = 0) -> None:
    """Standard deviation 0.02, norms' multipliers around 1. A whole parameter is drawn where it lies.

    Of a parameter that is split, every rank draws all and keeps its part: memory for one whole tensor at a time.
    """
    generator = torch.Generator(device=decoder.embedding.weight.device).manual_seed(seed)
    norms = {id(module.weight) for module in decoder.modules() if isinstance(module, RMSNorm)}
    targets = dict(split_parameters(decoder)) if decoder.communicator.size > 1 else {}
    for parameter in decoder.parameters():
        target = targets.get(id(parameter))
        mean = float(id(parameter) in norms)
        if target is None:
            parameter.normal_(mean=mean, std=0.02, generator=generator)
        else:
            target.load(parameter.new_empty(target.shape).normal_(mean=mean, std=0.02, generator=generator))


def split_parameters(decoder: Decoder) -> Iterator[tuple[int, Target]]:
    """Parameters by identity that hold a part of what one rank alone would draw, as one tensor of all shards."""
    for module in decoder.modules():
        if isinstance(module, Embedding):
            yield id(module.weight), embedding_target(module)
        elif isinstance(module, Linear):
            for name in linear_parameters(module):
                parameter: Tensor = module.get_parameter(name)
                yield id(parameter), stacked_target(module, name)
