"""Inputs of a step on the GPU: rows as the host decided them, everything else computed there from the slots' state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
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
class EagerStep:
    """A step with prefills, on the device."""

    input_ids: Tensor
    batch: TritonBatch
    sample_rows: Tensor  # int64 [S], the token whose hidden state each sample reads
    sample_slots: Tensor  # int32 [S]
    sample_positions: Tensor  # int32 [S]
    prefill_starts: list[int]  # first token of each prefill


def eager_step(plan: StepPlan, state: CudaSlots, attention: TritonAttention, block_size: int) -> EagerStep:
    """Lay out a mixed step: decodes first, then prefills."""
    device = state.lengths.device
    decodes, counts = len(plan.decodes), [len(p.token_ids) for p in plan.prefills]
    slots = [*plan.decodes, *(p.slot for p in plan.prefills)]
    starts = np.cumsum([0, *counts])
    rows, tokens = len(slots), decodes + int(starts[-1])
    sampled = [*range(decodes), *(decodes + i for i, p in enumerate(plan.prefills) for _ in p.samples)]
    head = [
        slots,
        [1] * decodes + counts,
        [1] * decodes + [0] * len(counts),
        [0] * decodes + starts[:-1].tolist(),
        plan.sample_slots,
        sampled,
    ]
    ids = chain.from_iterable(p.token_ids for p in plan.prefills)
    packed = upload(np.fromiter(chain(chain.from_iterable(head), ids), np.int32), device)
    views = torch.split(packed, [*(len(part) for part in head), int(starts[-1])])
    row_plan = RowPlan(slots=views[0], new=views[1], from_last=views[2], id_start=views[3], ids=views[6])
    inputs = allocate_inputs(rows, tokens, len(state.tables), device)
    prepare(row_plan, state, inputs, block_size)
    first = inputs[0]
    decode_plans = attention.decode_plans(decodes, device, None) if decodes else None
    prefill_plans = attention.prefill_plans(rows - decodes, tokens - decodes, device)
    for work in (decode_plans or {}).values():
        work.plan(views[0][:decodes], first.context_lens[:decodes])
    for tiles in prefill_plans.values():
        tiles.plan(views[0][decodes:], first.context_lens[decodes:], first.cu_q[decodes:])
    batch = triton_batch(inputs, state, views[0], decodes, decode_plans, prefill_plans)
    picked = views[5].long()
    return EagerStep(
        input_ids=first.input_ids,
        batch=batch,
        sample_rows=first.last_index[picked],
        sample_slots=views[4],
        sample_positions=first.context_lens[picked],
        prefill_starts=[decodes + int(start) for start in starts[:-1]],
    )


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
