"""Inputs of a step on the GPU: rows as the host decided them, everything else computed there from the slots' state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate, chain, repeat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thranite.attention.triton import LayerKind, TritonAttention, TritonBatch
from thranite.engine.plan import StepPlan
from thranite.runner.cuda_state import CudaSlots
from thranite.runner.sampling_transfer import upload
from thranite_kernels.paged_decode import DecodePlan
from thranite_kernels.paged_prefill import PrefillPlan
from thranite_kernels.prepare_inputs import RowPlan, StepInputs, prepare_inputs


def prepare(rows: RowPlan, state: CudaSlots, inputs: list[StepInputs], block_size: int) -> None:
    """Fill `inputs`, one of each KV group; the slots' lengths advance with the last."""
    last = len(inputs) - 1
    for index, (slots, out) in enumerate(zip(state.groups, inputs, strict=True)):
        prepare_inputs(slots, rows, out, block_size=block_size, advance=index == last)


def allocate_inputs(rows: int, tokens: int, groups: int, device: torch.device) -> list[StepInputs]:
    """Groups share everything but the places of keys and values; each computes the shared part anew (a few bytes)."""
    return [StepInputs.allocate(rows, tokens, device) for _ in range(groups)]


def decode_rows(slots: Tensor) -> RowPlan:
    """Every row takes its slot's last token."""
    ones, zeros = torch.ones_like(slots), torch.zeros_like(slots)
    return RowPlan(slots=slots, new=ones, from_last=ones, id_start=zeros, ids=torch.zeros_like(slots[:1]))


@dataclass(frozen=True, slots=True)
class StepShape:
    """Rows and tokens of a step as the device sees it: those of a plan, or more, where padding fills it up.

    Decode rows come first, a token each, then prompts' rows and their tokens.
    """

    decodes: int
    prompts: int
    prompt_tokens: int
    samples: int

    @property
    def rows(self) -> int:
        return self.decodes + self.prompts

    @property
    def tokens(self) -> int:
        return self.decodes + self.prompt_tokens

    @property
    def parts(self) -> list[int]:
        """Lengths of what `pack` puts together, in its order."""
        return [self.rows] * 4 + [self.samples] * 2 + [self.prompt_tokens]


def shape_of(plan: StepPlan) -> StepShape:
    """Without padding."""
    prompt_tokens = plan.num_tokens - len(plan.decodes)
    return StepShape(len(plan.decodes), len(plan.prefills), prompt_tokens, len(plan.sample_slots))


def prefill_starts(plan: StepPlan) -> list[int]:
    """The first token of each prefill in a step without padding."""
    counts = (len(prefill.token_ids) for prefill in plan.prefills)
    return list(accumulate(counts, initial=len(plan.decodes)))[:-1]


def pack(plan: StepPlan, shape: StepShape) -> NDArray[np.int32]:
    """All that the host tells the device of a step, for one copy: slots, new tokens, whether the first is the slot's
    last, where a row's other ids start, the samples' slots and rows, and the ids.

    A padded decode row has slot -1 and a token, a padded prompt's row has neither; padded samples read row 0.
    """
    lengths = [len(prefill.token_ids) for prefill in plan.prefills]
    starts = list(accumulate(lengths, initial=0))
    spare_decodes, spare_prompts = shape.decodes - len(plan.decodes), shape.prompts - len(lengths)
    sampling = [shape.decodes + row for row, prefill in enumerate(plan.prefills) for _ in prefill.samples]
    samples = plan.sample_slots
    spare_samples = shape.samples - len(samples)
    parts: list[Iterable[int]] = [
        plan.decodes,
        repeat(-1, spare_decodes),
        (prefill.slot for prefill in plan.prefills),
        repeat(-1, spare_prompts),
        repeat(1, shape.decodes),
        lengths,
        repeat(0, spare_prompts),
        repeat(1, shape.decodes),
        repeat(0, shape.prompts),
        repeat(0, shape.decodes),
        starts[:-1],
        repeat(0, spare_prompts),
        samples,
        repeat(-1, spare_samples),
        range(len(plan.decodes)),
        sampling,
        repeat(0, spare_samples),
        *(prefill.token_ids for prefill in plan.prefills),
        repeat(0, shape.prompt_tokens - starts[-1]),
    ]
    return np.fromiter(chain.from_iterable(parts), np.int32, sum(shape.parts))


@dataclass(frozen=True, slots=True)
class DeviceStep:
    """A step with prompts, on the device."""

    input_ids: Tensor
    batch: TritonBatch
    sample_rows: Tensor  # int64 [S], the token whose hidden state each sample reads
    sample_slots: Tensor  # int32 [S]
    sample_positions: Tensor  # int32 [S]


def device_step(
    packed: Tensor,
    shape: StepShape,
    state: CudaSlots,
    block_size: int,
    decode_plans: Mapping[LayerKind, DecodePlan] | None,
    prefill_plans: Mapping[LayerKind, PrefillPlan],
) -> DeviceStep:
    """Lay out a step from what `pack` put together, int32 on the device, and fill the work lists."""
    slots, new, from_last, id_start, sample_slots, sampled, ids = torch.split(packed, shape.parts)
    inputs = allocate_inputs(shape.rows, shape.tokens, len(state.tables), packed.device)
    row_plan = RowPlan(slots=slots, new=new, from_last=from_last, id_start=id_start, ids=ids)
    prepare(row_plan, state, inputs, block_size)
    first, decodes = inputs[0], shape.decodes
    for work in (decode_plans or {}).values():
        work.plan(slots[:decodes], first.context_lens[:decodes])
    for tiles in prefill_plans.values():
        tiles.plan(slots[decodes:], first.context_lens[decodes:], first.cu_q[decodes:])
    picked = sampled.long()
    return DeviceStep(
        input_ids=first.input_ids,
        batch=triton_batch(inputs, state, slots, decodes, decode_plans, prefill_plans),
        sample_rows=first.last_index[picked],
        sample_slots=sample_slots,
        sample_positions=first.context_lens[picked],
    )


def eager_step(plan: StepPlan, state: CudaSlots, attention: TritonAttention, block_size: int) -> DeviceStep:
    """Lay out a step as it is."""
    device, shape = state.lengths.device, shape_of(plan)
    decode_plans = attention.decode_plans(shape.decodes, device, None) if shape.decodes else None
    prefill_plans = attention.prefill_plans(shape.prompts, shape.prompt_tokens, device)
    packed = upload(pack(plan, shape), device)
    return device_step(packed, shape, state, block_size, decode_plans, prefill_plans)


def triton_batch(
    inputs: list[StepInputs],
    state: CudaSlots,
    slots: Tensor,
    num_decodes: int,
    decode_plans: Mapping[LayerKind, DecodePlan] | None,
    prefill_plans: Mapping[LayerKind, PrefillPlan] | None,
) -> TritonBatch:
    """The batch that the attention layers read; its host copies are empty."""
    first = inputs[0]
    return TritonBatch(
        positions=first.positions,
        query_starts=first.cu_q,
        context_lens=first.context_lens,
        slots=slots,
        block_tables=state.tables,
        slot_mappings=tuple(each.slot_mapping for each in inputs),
        host_query_starts=(),
        host_context_lens=(),
        num_decodes=num_decodes,
        decode_plans=decode_plans,
        prefill_plans=prefill_plans,
    )
