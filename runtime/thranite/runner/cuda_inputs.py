"""Inputs of a step on the GPU: rows as the host decided them, everything else computed there from the slots' state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thranite.attention.triton import LayerKind, TritonAttention, TritonBatch
from thranite.engine.plan import StepPlan
from thranite.runner.cuda_state import CudaSlots
from thranite.runner.sampling_transfer import upload
from thranite.runner.step_shape import StepShape, shape_of
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


def prefill_starts(plan: StepPlan) -> list[int]:
    """The first token of each prefill in a step without padding."""
    counts = (len(prefill.token_ids) for prefill in plan.prefills)
    return list(accumulate(counts, initial=len(plan.decodes)))[:-1]


def pack(plan: StepPlan, shape: StepShape) -> NDArray[np.int32]:
    """All that the host tells the device of a step, for one copy: slots, new tokens, whether the first is the slot's
    last, where a row's other ids start, the samples' slots and rows, and the ids.

    Padded rows have slot -1 and no tokens: the rows' tokens stand without gaps, those that decode first, and padding
    comes last. Padded samples have slot -1 and read row 0.
    """
    packed = np.zeros(sum(shape.parts), np.int32)
    slots, new, from_last, id_start, sample_slots, sampled, ids = np.split(packed, np.cumsum(shape.parts)[:-1])
    decodes, prompts = len(plan.decodes), slice(shape.decodes, shape.decodes + len(plan.prefills))
    lengths = [len(prefill.token_ids) for prefill in plan.prefills]
    slots.fill(-1)
    slots[:decodes] = plan.decodes
    slots[prompts] = [prefill.slot for prefill in plan.prefills]
    new[:decodes] = 1
    new[prompts] = lengths
    from_last[:decodes] = 1
    id_start[prompts] = np.cumsum([0, *lengths])[:-1]
    samples = plan.sample_slots
    sample_slots.fill(-1)
    sample_slots[: len(samples)] = samples
    sampled[:decodes] = np.arange(decodes)
    sampled[decodes : len(samples)] = [
        shape.decodes + row for row, prefill in enumerate(plan.prefills) for _ in prefill.samples
    ]
    given = chain.from_iterable(prefill.token_ids for prefill in plan.prefills)
    ids[: sum(lengths)] = np.fromiter(given, np.int32, sum(lengths))
    return packed


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
        batch=triton_batch(inputs, state, slots, decode_plans, prefill_plans),
        sample_rows=first.last_index[picked],
        sample_slots=sample_slots,
        sample_positions=first.context_lens[picked],
    )


def eager_step(plan: StepPlan, state: CudaSlots, attention: TritonAttention, block_size: int) -> DeviceStep:
    """Lay out a step as it is."""
    device, shape = state.lengths.device, shape_of(plan)
    decode_plans = attention.decode_plans(shape.decodes, device, {}) if shape.decodes else None
    prefill_plans = attention.prefill_plans(shape.prompts, shape.tokens - shape.decodes, device)
    packed = upload(pack(plan, shape), device)
    return device_step(packed, shape, state, block_size, decode_plans, prefill_plans)


def triton_batch(
    inputs: list[StepInputs],
    state: CudaSlots,
    slots: Tensor,
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
        decode_plans=decode_plans,
        prefill_plans=prefill_plans,
    )
