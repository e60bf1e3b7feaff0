"""Launch sequences as CUDA graphs: one a shape, in one memory pool."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from thranite.layers.tuned_products import tuning

Shape = TypeVar("Shape")
Output = TypeVar("Output")


@dataclass(frozen=True, slots=True)
class Recording(Generic[Output]):
    """What a graph is made of. `forward` launches the sequence and returns tensors that each replay fills anew.

    `lists`: the work lists that it reads and writes. They are not the graph's own memory, so they must live as long.
    """

    forward: Callable[[], Output]
    lists: object


@dataclass(frozen=True, slots=True)
class _Captured(Generic[Output]):
    graph: torch.cuda.CUDAGraph
    output: Output
    lists: object


class GraphSet(Generic[Shape, Output]):
    """Graphs of one launch sequence. What a replay leaves on the device stays there until the next one of any shape."""

    def __init__(self, record: Callable[[Shape], Recording[Output]], device: torch.device, ranks: int) -> None:
        self._record = record
        self._device = device
        # Between ranks, torch's watchdog of collectives asks for events meanwhile, from its own thread.
        self._error_mode = "global" if ranks == 1 else "thread_local"
        self._pool: Any = None
        self._captured: dict[Shape, _Captured[Output]] = {}

    def __contains__(self, shape: Shape) -> bool:
        return shape in self._captured

    @torch.inference_mode()
    def capture(self, shape: Shape) -> None:
        """Capture a shape. Less memory is taken if larger ones are there: a pool is as large as its largest graph.

        It runs once outside the graph first, which compiles what it launches and times what it has a choice of.
        """
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        recording = self._record(shape)
        with tuning():
            recording.forward()
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode=self._error_mode):
            output = recording.forward()
        self._captured[shape] = _Captured(graph, output, recording.lists)

    def replay(self, shape: Shape) -> Output:
        captured = self._captured[shape]
        captured.graph.replay()
        return captured.output

    def output(self, shape: Shape) -> Output:
        """What a replay leaves."""
        return self._captured[shape].output

    def drop(self, shape: Shape) -> None:
        del self._captured[shape]

    def release(self) -> None:
        """Give back the memory of all."""
        self._captured.clear()
        self._pool = None
