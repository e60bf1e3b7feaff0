"""Decode as one CUDA graph a batch size: inputs and every layer, replayed with a single launch.

Inside a graph nothing is known but the rows' slots, which the host writes into a fixed buffer before the replay (and
leaves alone while the same sequences run on). A size that has no graph runs in the next larger one; padding rows have
slot -1, write to the null page and disturb nobody.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from thranite.attention.triton import DecodeScratch, LayerKind, TritonAttention
from thranite.layers.tuned_products import tuning
from thranite.models.decoder import Decoder
from thranite.runner.cuda_capture import GraphSet, Recording
from thranite.runner.cuda_inputs import allocate_inputs, decode_rows, prepare, triton_batch
from thranite.runner.cuda_state import CudaSlots
from thranite.runner.sampling_transfer import upload
from thranite_kernels.paged_decode import DecodePlan


def graph_sizes(max_rows: int) -> list[int]:
    """Batch sizes to capture: close together where a padded row costs most of a step, at most an eighth apart."""
    sizes = [1, 2, 4, *range(8, 128, 8), *range(128, 256, 16), *range(256, 512, 32), *range(512, 4097, 64)]
    return [size for size in sizes if size < max_rows] + [max_rows]


@cache
def padded_rows(count: int, most: int) -> int:
    """The batch size that holds `count` rows, of `most` that there are."""
    sizes = graph_sizes(most)
    return sizes[bisect_left(sizes, count)]


def ready_sizes(max_rows: int) -> list[int]:
    """Those of `graph_sizes` that an engine needs to be ready: powers of two and three times those, and the largest.

    The first one captured is the largest, so the others fit in its memory.
    """
    steps = {factor << shift for factor in (1, 3) for shift in range(13)}
    return [size for size in graph_sizes(max_rows) if size in steps or size == max_rows]


PADDED_WHEN_SLOWER = 16  # batches up to this may run as a larger one


@dataclass(frozen=True, slots=True)
class DecodeOutput:
    """What a replay leaves on the device until the next one."""

    hidden: Tensor  # [B, hidden], after the final norm: logits of every size would fill gigabytes
    slots: Tensor  # int32 [B], -1 for padding
    positions: Tensor  # int32 [B], where the sampled token will stand


class DecodeGraphs:
    """All graphs of an engine. `capture` makes some of the sizes, `capture_next` each one of the others."""

    def __init__(
        self, model: Decoder, attention: TritonAttention, state: CudaSlots, block_size: int, max_rows: int
    ) -> None:
        self._model, self._attention, self._state = model, attention, state
        self._block_size = block_size
        self._device = state.lengths.device
        self._slots = torch.full((max_rows,), -1, dtype=torch.int32, device=self._device)
        self._present: list[int] = []
        self._sizes = ready_sizes(max_rows)  # ascending: those that have a graph once captured
        self._later = [size for size in graph_sizes(max_rows) if size not in self._sizes]
        self._scratch: DecodeScratch = {}
        self._graphs = GraphSet(self._record, self._device, model.communicator.size)

    def capture(self) -> None:
        """Capture the sizes of `ready_sizes`, and keep those that are worth it."""
        self.capture_again()
        self._drop_slow_sizes()

    def capture_again(self) -> None:
        """After `release`: the same sizes, so that the same rows run through the same kernels as before."""
        for size in reversed(self._sizes):
            self._capture(size)

    def capture_next(self) -> bool:
        """One more size, between two steps. False: there is none."""
        if not self._later:
            return False
        self._clear_rows()
        size = self._later.pop()
        self._capture(size)
        insort(self._sizes, size)
        return True

    @torch.inference_mode()
    def _capture(self, size: int) -> None:
        self._graphs.capture(size)
        with tuning():  # the head follows the graph
            self._model.raw_logits(self._graphs.output(size).hidden)

    def release(self) -> None:
        """Give back the graphs' memory; nothing can be run until they are captured again."""
        self._graphs.release()
        self._scratch = {}
        self._clear_rows()

    def _clear_rows(self) -> None:
        """The run before a capture has nothing but padding: no slot's state is touched."""
        self._slots.fill_(-1)
        self._present = []

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
                self._graphs.drop(size)

    def _replay_milliseconds(self, size: int) -> float:
        """Median time of a replay, all rows padding."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        times: list[float] = []
        for _ in range(9):
            begin.record()
            self._graphs.replay(size)
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        return sorted(times)[len(times) // 2]

    def _record(self, size: int) -> Recording[DecodeOutput]:
        plans = self._attention.decode_plans(size, self._device, self._scratch)
        return Recording(partial(self._forward, size, plans), plans)

    def _forward(self, size: int, plans: dict[LayerKind, DecodePlan]) -> DecodeOutput:
        slots = self._slots[:size]
        inputs = allocate_inputs(size, size, len(self._state.tables), self._device)
        prepare(decode_rows(slots), self._state, inputs, self._block_size)
        first = inputs[0]
        for plan in plans.values():
            plan.plan(slots, first.context_lens)
        batch = triton_batch(inputs, self._state, slots, plans, None)
        return DecodeOutput(self._model(first.input_ids, batch, self._attention), slots, first.context_lens)

    def run(self, decodes: list[int]) -> DecodeOutput:
        """Replay the step of these slots. The output's rows beyond them are padding."""
        size = self._sizes[bisect_left(self._sizes, len(decodes))]
        padded = decodes + [-1] * (size - len(decodes))
        if self._present[:size] != padded:
            self._slots[:size].copy_(upload(np.asarray(padded, np.int32), self._device), non_blocking=True)
            self._present = padded
        return self._graphs.replay(size)
