"""A prompt as a vector: the engine's request for it, and the vector's length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

from thranite.engine.client import EngineInfo
from thranite.errors import InvalidRequest
from thranite.request import EngineRequest
from thranite.sampling_params import Pooling, TokenParams
from thranite.text.prompt import check_prompt


def check_pooling(pooling: Pooling) -> None:
    if pooling not in get_args(Pooling):
        raise InvalidRequest(f"pooling must be one of {', '.join(get_args(Pooling))}; got {pooling!r}", "pooling")


def embedding_request(
    request_id: str,
    token_ids: Sequence[int],
    pooling: Pooling,
    info: EngineInfo,
    *,
    param: str = "prompt",
    priority: int = 0,
    timeout_seconds: float | None = None,
) -> EngineRequest:
    """It goes the way of every request, and draws one token that nobody reads. Raises InvalidRequest."""
    ids = tuple(token_ids)
    check_prompt(ids, info, param, output=0)
    params = TokenParams(max_tokens=1, seed=0, temperature=0.0, pooling=pooling)
    return EngineRequest(request_id, ids, params, priority, timeout_seconds)


def unit_length(vector: Sequence[float]) -> list[float]:
    """As embeddings are compared: by their angle."""
    length = math.sqrt(math.fsum(value * value for value in vector))
    return [value / length for value in vector] if length else list(vector)
