"""Decode as one CUDA graph a batch size: inputs and every layer, replayed with a single launch.

Inside a graph nothing is known but the rows' slots, which the host writes into a fixed buffer before the replay (and
leaves alone while the same sequences run on). A size that has no graph runs in the next larger one; padding rows have
slot -1, write to the null page and disturb nobody.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from thranite.attention.triton import LayerKind, TritonAttention
from thranite.models.decoder import Decoder
from thranite.runner.cuda_capture import capture_graph
from thranite.runner.cuda_inputs import allocate_inputs, decode_rows, prepare, triton_batch
from thranite.runner.cuda_state import CudaSlots
from thranite.runner.sampling_transfer import upload
from thranite_kernels.paged_decode import DecodePlan


def graph_sizes(max_rows: int) -> list[int]:
    """Batch sizes to capture: close together where a padded row costs most of a step, at most an eighth apart."""
    sizes = [1, 2, 4, *range(8, 128, 8), *range(128, 256, 16), *range(256, 512, 32), *range(512, 4097, 64)]
    return [size for size in sizes if size < max_rows] + [max_rows]


PADDED_WHEN_SLOWER = 16  # batches up to this may run as a larger one


@dataclass(frozen=True, slots=True)
class DecodeOutput:
    """What a replay leaves on the device until the next one."""

    hidden: Tensor  # [B, hidden], after the final norm: logits of every size would fill gigabytes
    slots: Tensor  # int32 [B], -1 for padding
    positions: Tensor  # int32 [B], where the sampled token will stand


@dataclass(frozen=True, slots=True)
class _Captured:
    """`plans` are not the graph's own memory: it works on them at each replay, so they must live as long."""

    graph: torch.cuda.CUDAGraph
    output: DecodeOutput
    plans: dict[LayerKind, DecodePlan]


class DecodeGraphs:
    """All graphs of an engine. They share one memory pool, so the largest is captured first."""

    def __init__(
        self, model: Decoder, attention: TritonAttention, state: CudaSlots, block_size: int, max_rows: int
    ) -> None:
        self._model, self._attention, self._state = model, attention, state
        self._block_size = block_size
        self._device = state.lengths.device
        self._slots = torch.full((max_rows,), -1, dtype=torch.int32, device=self._device)
        self._present: list[int] = []
        self._sizes = graph_sizes(max_rows)
        self._captured: dict[int, _Captured] = {}

    @torch.inference_mode()
    def capture(self) -> None:
        """Capture every size, and keep those that are worth it."""
        self._capture_sizes()
        self._drop_slow_sizes()

    @torch.inference_mode()
    def capture_again(self) -> None:
        """After `release`: the same sizes, so that the same rows run through the same kernels as before."""
        self._capture_sizes()

    def release(self) -> None:
        """Give back the graphs' memory; nothing can be run until they are captured again."""
        self._captured.clear()
        self._slots.fill_(-1)
        self._present = []

    def _capture_sizes(self) -> None:
        """Largest first."""
        pool = torch.cuda.graph_pool_handle()
        scratch: dict[LayerKind, DecodePlan] | None = None
        for size in reversed(self._sizes):
            plans = self._attention.decode_plans(size, self._device, scratch)
            scratch = scratch or plans
            forward = partial(self._forward, size, plans)
            graph, output = capture_graph(forward, pool, self._device, self._model.communicator.size)
            self._captured[size] = _Captured(graph, output, plans)

    def _drop_slow_sizes(self) -> None:
        """Small batches whose padded neighbour is faster give way to it: cuBLAS is slower for 1 row than for 8 where
        the matrices are small (Qwen3-0.6B's products on an H200: 0.94 ms for 1 row, 0.70 ms for 8)."""
        small = [size for size in reversed(self._sizes) if size <= PADDED_WHEN_SLOWER]
        nanoseconds = [round(self._replay_milliseconds(size) * 1e6) for size in small]
        best = float("inf")
        # All ranks must run the same size for the same rows: they take the fastest rank's times.
        for size, time in zip(small, self._model.communicator.least(nanoseconds), strict=True):
            if time < best:
                best = time
            else:
                self._sizes.remove(size)
                del self._captured[size]

    def _replay_milliseconds(self, size: int) -> float:
        """Median time of a replay, all rows padding."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        times: list[float] = []
        for _ in range(9):
            begin.record()
            self._captured[size].graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        return sorted(times)[len(times) // 2]

    def _forward(self, size: int, plans: dict[LayerKind, DecodePlan]) -> DecodeOutput:
        slots = self._slots[:size]
        inputs = allocate_inputs(size, size, len(self._state.tables), self._device)
        prepare(decode_rows(slots), self._state, inputs, self._block_size)
        first = inputs[0]
        for plan in plans.values():
            plan.plan(slots, first.context_lens)
        batch = triton_batch(inputs, self._state, slots, size, plans, None)
        return DecodeOutput(self._model(first.input_ids, batch, self._attention), slots, first.context_lens)

    def run(self, decodes: list[int]) -> DecodeOutput:
        """Replay the step of these slots. The output's rows beyond them are padding."""
        size = self._sizes[bisect_left(self._sizes, len(decodes))]
        padded = decodes + [-1] * (size - len(decodes))
        if self._present[:size] != padded:
            self._slots[:size].copy_(upload(np.asarray(padded, np.int32), self._device), non_blocking=True)
            self._present = padded
        captured = self._captured[size]
        captured.graph.replay()
        return captured.output
