"""Steps with few prompt tokens as CUDA graphs: what a request's first token waits for, when little else is computed.

Launching such a step kernel by kernel takes the host longer (12 ms for 32 layers) than computing it takes the device.
A graph has a fixed shape (rows that decode, rows and tokens of prompts), and a step runs in the least one that holds
it. Larger steps keep the device busy while they are launched; so do those that want more of a prompt than a token:
both run without a graph.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from thranite.attention.triton import LayerKind, TritonAttention
from thranite.engine.plan import Prefill, StepPlan
from thranite.engine.settings import EngineSettings
from thranite.models.decoder import Decoder
from thranite.runner.cuda_capture import capture_graph
from thranite.runner.cuda_inputs import StepShape, device_step, pack
from thranite.runner.cuda_state import CudaSlots
from thranite.runner.sampling_transfer import upload
from thranite_kernels.paged_decode import DecodePlan
from thranite_kernels.paged_prefill import PrefillPlan

PROMPTS = 4  # rows; more new prompts in one step have many tokens
PROMPT_TOKENS = (64, 128, 256, 384, 512, 640, 768, 1024)
DECODE_ROWS = (8, 32, 64, 96, 128, 192, 256)


@dataclass(frozen=True, slots=True)
class MixedOutput:
    """What a replay leaves on the device until the next one, a row a sample; those beyond the plan's are padding."""

    hidden: Tensor  # [S, hidden], after the final norm
    slots: Tensor  # int32 [S]
    positions: Tensor  # int32 [S], where the sampled token will stand


@dataclass(frozen=True, slots=True)
class _Captured:
    """The work lists are not the graph's own memory: it works on them at each replay, so they must live as long."""

    graph: torch.cuda.CUDAGraph
    output: MixedOutput
    decode_plans: Mapping[LayerKind, DecodePlan]
    prefill_plans: Mapping[LayerKind, PrefillPlan]


class MixedGraphs:
    """The graphs of one engine. They share one memory pool, so the largest is captured first."""

    def __init__(self, model: Decoder, attention: TritonAttention, state: CudaSlots, settings: EngineSettings) -> None:
        self._model, self._attention, self._state = model, attention, state
        self._block_size = settings.layout.block_size
        self._device = state.lengths.device
        self._shapes = mixed_shapes(settings)
        self._decodes = sorted({shape.decodes for shape in self._shapes})
        self._tokens = sorted({shape.prompt_tokens for shape in self._shapes})
        self._captured: dict[StepShape, _Captured] = {}
        self._packed = torch.zeros(sum(self._shapes[0].parts), dtype=torch.int32, device=self._device)

    def shape_for(self, plan: StepPlan) -> StepShape | None:
        """The least shape that holds the plan's step, or None."""
        if not 0 < len(plan.prefills) <= PROMPTS or not all(_plain(prefill) for prefill in plan.prefills):
            return None
        decodes = bisect_left(self._decodes, len(plan.decodes))
        tokens = bisect_left(self._tokens, plan.num_tokens - len(plan.decodes))
        if decodes == len(self._decodes) or tokens == len(self._tokens):
            return None
        shape = _shape(self._decodes[decodes], self._tokens[tokens])
        return shape if shape in self._captured else None

    def run(self, plan: StepPlan, shape: StepShape) -> MixedOutput:
        """Replay the plan's step, which `shape` holds."""
        packed = pack(plan, shape)
        self._packed[: len(packed)].copy_(upload(packed, self._device), non_blocking=True)
        captured = self._captured[shape]
        captured.graph.replay()
        return captured.output

    @torch.inference_mode()
    def capture(self) -> None:
        """Capture every shape."""
        pool = torch.cuda.graph_pool_handle()
        scratch: Mapping[LayerKind, DecodePlan] | None = None
        for shape in self._shapes:
            plans = self._attention.decode_plans(shape.decodes, self._device, scratch)
            scratch = scratch or plans
            tiles = self._attention.prefill_plans(PROMPTS, shape.prompt_tokens, self._device)
            self._mark_padding(shape)
            forward = partial(self._forward, shape, plans, tiles)
            graph, output = capture_graph(forward, pool, self._device, self._model.communicator.size)
            self._captured[shape] = _Captured(graph, output, plans, tiles)

    def release(self) -> None:
        """Give back the graphs' memory; no step has a shape until they are captured again."""
        self._captured.clear()

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
    """All that an engine captures, the largest first."""
    tokens, decodes = _up_to(PROMPT_TOKENS, settings.max_num_batched_tokens), _up_to(DECODE_ROWS, settings.max_num_seqs)
    return [_shape(rows, count) for count in reversed(tokens) for rows in reversed(decodes)]


def _shape(decodes: int, tokens: int) -> StepShape:
    return StepShape(decodes, PROMPTS, tokens, decodes + PROMPTS)


def _up_to(sizes: tuple[int, ...], most: int) -> list[int]:
    """The sizes below `most`, and `most` itself if it is within their range."""
    return [size for size in sizes if size < most] + ([most] if most <= sizes[-1] else [])


def _plain(prefill: Prefill) -> bool:
    return prefill.prompt_logprobs is None and prefill.pooling is None and len(prefill.samples) <= 1
