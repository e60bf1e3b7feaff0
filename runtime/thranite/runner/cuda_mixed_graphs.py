"""Steps with few prompt tokens as CUDA graphs: what a request's first token waits for, when little else is computed.

Launching such a step kernel by kernel takes the host longer (12 ms for 32 layers) than computing it takes the device.
A graph has a fixed shape (rows that decode, rows and tokens of prompts), and a step runs in the least one that holds
it. Larger steps keep the device busy while they are launched; so do those that want more of a prompt than a token:
both run without a graph.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from thranite.attention.triton import LayerKind, TritonAttention
from thranite.engine.plan import Prefill, StepPlan
from thranite.engine.settings import EngineSettings
from thranite.models.decoder import Decoder
from thranite.runner.cuda_capture import GraphSet, Recording
from thranite.runner.cuda_inputs import StepShape, device_step, pack
from thranite.runner.cuda_state import CudaSlots
from thranite.runner.sampling_transfer import upload
from thranite_kernels.paged_decode import DecodePlan
from thranite_kernels.paged_prefill import PrefillPlan

PROMPTS = 4  # rows; more new prompts in one step have many tokens
PROMPT_TOKENS = (64, 128, 256, 384, 512, 640, 768, 1024)
DECODE_ROWS = (8, 32, 64, 96, 128, 192, 256)
READY_TOKENS = (256, 512, 1024)
READY_ROWS = (32, 128, 256)


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
        every = mixed_shapes(settings)
        self._shapes = ready_shapes(every)  # least tokens first: those that have a graph once captured
        self._later = sorted(set(every) - set(self._shapes), key=_size)
        self._scratch: Mapping[LayerKind, DecodePlan] | None = None
        self._packed = torch.zeros(sum(every[-1].parts), dtype=torch.int32, device=self._device)
        self._graphs = GraphSet(self._record, self._device, model.communicator.size)

    def shape_for(self, plan: StepPlan) -> StepShape | None:
        """The least shape that holds the plan's step, or None."""
        if not 0 < len(plan.prefills) <= PROMPTS or not all(_plain(prefill) for prefill in plan.prefills):
            return None
        decodes, tokens = len(plan.decodes), plan.num_tokens - len(plan.decodes)
        holding = (s for s in self._shapes if s.decodes >= decodes and s.prompt_tokens >= tokens)
        return next((shape for shape in holding if shape in self._graphs), None)

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
        insort(self._shapes, shape, key=_size)
        return True

    def release(self) -> None:
        """Give back the graphs' memory; no step has a shape until they are captured again."""
        self._graphs.release()
        self._scratch = None

    def _record(self, shape: StepShape) -> Recording[MixedOutput]:
        plans = self._attention.decode_plans(shape.decodes, self._device, self._scratch)
        self._scratch = self._scratch or plans
        tiles = self._attention.prefill_plans(PROMPTS, shape.prompt_tokens, self._device)
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
        hidden = self._model(step.input_ids, step.batch, self._attention)
        return MixedOutput(hidden[step.sample_rows], step.sample_slots, step.sample_positions)


def mixed_shapes(settings: EngineSettings) -> list[StepShape]:
    """All that an engine captures, least tokens first."""
    tokens, decodes = _up_to(PROMPT_TOKENS, settings.max_num_batched_tokens), _up_to(DECODE_ROWS, settings.most_decodes)
    return sorted((_shape(rows, count) for count in tokens for rows in decodes), key=_size)


def ready_shapes(shapes: Sequence[StepShape]) -> list[StepShape]:
    """Those of `mixed_shapes` that an engine needs to be ready. The largest is among them: the others fit in its
    memory."""
    tokens = {*READY_TOKENS, max(shape.prompt_tokens for shape in shapes)}
    rows = {*READY_ROWS, max(shape.decodes for shape in shapes)}
    return [shape for shape in shapes if shape.prompt_tokens in tokens and shape.decodes in rows]


def _size(shape: StepShape) -> tuple[int, int]:
    """What a padded step costs first, then something that tells shapes apart."""
    return shape.tokens, shape.decodes


def _shape(decodes: int, tokens: int) -> StepShape:
    return StepShape(decodes, PROMPTS, tokens, decodes + PROMPTS)


def _up_to(sizes: tuple[int, ...], most: int) -> list[int]:
    """The sizes below `most`, and `most` itself if it is within their range."""
    return [size for size in sizes if size < most] + ([most] if most <= sizes[-1] else [])


def _plain(prefill: Prefill) -> bool:
    return prefill.prompt_logprobs is None and prefill.pooling is None and len(prefill.samples) <= 1
