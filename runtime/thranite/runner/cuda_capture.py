"""Capture one launch sequence as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Output = TypeVar("Output")


def capture_graph(
    forward: Callable[[], Output], pool: Any, device: torch.device, ranks: int
) -> tuple[torch.cuda.CUDAGraph, Output]:
    """The graph of `forward`, and what it returned: tensors in `pool` that each replay fills anew.

    It runs once outside the graph first, which compiles what it launches. Between ranks, torch's watchdog of
    collectives asks for events meanwhile, from its own thread.
    """
    forward()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="global" if ranks == 1 else "thread_local"):
        output = forward()
    return graph, output
