"""Steps with prompts as CUDA graphs: what a request's first token waits for, when little else is computed.

Launching such a step kernel by kernel takes the host longer (12 ms for 32 layers) than computing it takes the device.
A graph has a number of tokens, whatever share of them decodes, and a step runs in the least one that holds it.
`mixed_shapes` says which there are. Other steps keep the device busy while they are launched; they, and those that want
more of a prompt than a token, run without a graph.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from thranite.attention.triton import DecodeScratch, LayerKind, TritonAttention
from thranite.engine.plan import StepPlan
from thranite.engine.settings import EngineSettings
from thranite.models.decoder import Decoder
from thranite.runner.cuda_capture import GraphSet, Recording
from thranite.runner.cuda_inputs import device_step, pack
from thranite.runner.cuda_state import CudaSlots
from thranite.runner.mixed_shapes import layer_seconds, mixed_shapes, pays, ready_shapes
from thranite.runner.sampling_transfer import upload
from thranite.runner.step_shape import StepShape, shape_of
from thranite_kernels.paged_decode import DecodePlan
from thranite_kernels.paged_prefill import PrefillPlan


@dataclass(frozen=True, slots=True)
class MixedOutput:
    """What a replay leaves on the device until the next one, a row a sample; those beyond the plan's are padding."""

    hidden: Tensor  # [S, hidden], after the final norm
    slots: Tensor  # int32 [S]
    positions: Tensor  # int32 [S], where the sampled token will stand


class MixedGraphs:
    """The graphs of one engine. `capture` makes some of the shapes, `capture_next` each one of the others."""

    def __init__(self, model: Decoder, attention: TritonAttention, state: CudaSlots, settings: EngineSettings) -> None:
        self._model, self._attention, self._state = model, attention, state
        self._block_size = settings.layout.block_size
        self._device = state.lengths.device
        self._layer_seconds = layer_seconds(model.rank_spec)
        every = mixed_shapes(settings, model.rank_spec)
        self._shapes = ready_shapes(every)  # least tokens first: those that have a graph once captured
        self._later = [shape for shape in every if shape not in self._shapes]
        self._scratch: DecodeScratch = {}
        self._packed = torch.zeros(sum(every[-1].parts), dtype=torch.int32, device=self._device)
        # One for all graphs: each would keep its own otherwise.
        self._hidden = torch.zeros(every[-1].samples, model.spec.hidden_size, dtype=model.dtype, device=self._device)
        self._graphs = GraphSet(self._record, self._device, model.communicator.size)

    def shape_for(self, plan: StepPlan) -> StepShape | None:
        """The least shape that holds the plan's step, or None where that is to run without a graph."""
        if not plan.prefills or plan.reads_prompts or any(len(prefill.samples) > 1 for prefill in plan.prefills):
            return None
        needed = shape_of(plan)
        shape = next((shape for shape in self._shapes if shape.holds(needed) and shape in self._graphs), None)
        if shape is None or not pays(self._layer_seconds, shape.tokens, needed.tokens):
            return None
        return shape

    def run(self, plan: StepPlan, shape: StepShape) -> MixedOutput:
        """Replay the plan's step, which `shape` holds."""
        packed = pack(plan, shape)
        self._packed[: len(packed)].copy_(upload(packed, self._device), non_blocking=True)
        return self._graphs.replay(shape)

    def capture(self) -> None:
        """Capture the shapes of `ready_shapes`; after `release`, all that there were."""
        for shape in reversed(self._shapes):
            self._graphs.capture(shape)

    def capture_next(self) -> bool:
        """One more shape, between two steps. False: there is none."""
        if not self._later:
            return False
        shape = self._later.pop()
        self._graphs.capture(shape)
        insort(self._shapes, shape, key=lambda shape: shape.tokens)
        return True

    def release(self) -> None:
        """Give back the graphs' memory; no step has a shape until they are captured again."""
        self._graphs.release()
        self._scratch = {}

    def _record(self, shape: StepShape) -> Recording[MixedOutput]:
        plans = self._attention.decode_plans(shape.decodes, self._device, self._scratch)
        tiles = self._attention.prefill_plans(shape.prompts, shape.tokens, self._device)
        self._mark_padding(shape)
        return Recording(partial(self._forward, shape, plans, tiles), (plans, tiles))

    def _mark_padding(self, shape: StepShape) -> None:
        """The run before the capture has nothing but padding: no slot's state is touched."""
        nothing = pack(StepPlan(0), shape)
        self._packed[: len(nothing)].copy_(torch.from_numpy(nothing))

    def _forward(
        self, shape: StepShape, plans: Mapping[LayerKind, DecodePlan], tiles: Mapping[LayerKind, PrefillPlan]
    ) -> MixedOutput:
        packed = self._packed[: sum(shape.parts)]
        step = device_step(packed, shape, self._state, self._block_size, plans, tiles)
        hidden = self._hidden[: shape.samples]
        hidden.copy_(self._model(step.input_ids, step.batch, self._attention, step.sample_rows))
        return MixedOutput(hidden, step.sample_slots, step.sample_positions)
