"""The tensors of one step, from a plan and the slots' state."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from thranite.attention.base import AttentionBatch
from thranite.engine.plan import StepPlan
from thranite.runner.sampling_transfer import upload
from thranite.runner.slots import Slots


@dataclass(frozen=True, slots=True)
class StepInputs:
    """T tokens in R rows: decodes first, then prefills, as the plan has them.

    `sample_rows` [S]: the token whose hidden state each sample reads (None: every token's, in order);
    `sample_positions`: where the sampled token will stand.
    """

    input_ids: Tensor  # int64 [T]
    batch: AttentionBatch
    sample_slots: list[int]
    sample_rows: Tensor | None  # int64 [S]
    sample_positions: list[int]
    prefill_starts: list[int]  # first token of each prefill


def build_inputs(plan: StepPlan, slots: Slots, device: torch.device) -> StepInputs:
    """Advance the slots' lengths by the plan, and lay out its tokens."""
    decodes = np.asarray(plan.decodes, np.int64)
    counts = np.concatenate([np.ones(len(decodes), np.int64), [len(p.token_ids) for p in plan.prefills]]).astype(
        np.int64
    )
    row_slots = np.concatenate([decodes, [p.slot for p in plan.prefills]]).astype(np.int64)
    firsts = slots.lengths[row_slots]
    ends = np.concatenate([[0], np.cumsum(counts)])
    token_slots = np.repeat(row_slots, counts)
    positions = np.arange(ends[-1]) - np.repeat(ends[:-1], counts) + np.repeat(firsts, counts)
    contexts = firsts + counts
    slots.lengths[row_slots] = contexts
    batch = AttentionBatch(
        positions=upload(positions, device),
        query_starts=upload(ends.astype(np.int32), device),
        context_lens=upload(contexts.astype(np.int32), device),
        slots=upload(row_slots.astype(np.int32), device),
        block_tables=slots.tables,
        slot_mappings=tuple(
            upload(slots.places(group, token_slots, positions), device) for group in range(len(slots.tables))
        ),
        host_query_starts=ends.tolist(),
        host_context_lens=contexts.tolist(),
    )
    sample_rows = list(range(len(decodes)))
    sample_rows += [int(ends[len(decodes) + i + 1]) - 1 for i, p in enumerate(plan.prefills) for _ in p.samples]
    sampled_rows = [*range(len(decodes)), *(len(decodes) + i for i, p in enumerate(plan.prefills) for _ in p.samples)]
    return StepInputs(
        input_ids=_input_ids(plan, slots, decodes, device),
        batch=batch,
        sample_slots=plan.sample_slots,
        sample_rows=upload(np.asarray(sample_rows, np.int64), device) if plan.prefills else None,
        sample_positions=contexts[sampled_rows].tolist() if sampled_rows else [],
        prefill_starts=ends[len(decodes) : -1].tolist(),
    )


def _input_ids(
    plan: StepPlan, slots: Slots, decodes: np.ndarray[tuple[int], np.dtype[np.int64]], device: torch.device
) -> Tensor:
    """Tokens sampled last, which the host may not know yet, then the prefills' own."""
    parts = []
    if len(decodes):
        parts.append(slots.last_tokens[upload(decodes, device)])
    if plan.prefills:
        known = np.fromiter(chain.from_iterable(p.token_ids for p in plan.prefills), np.int64)
        parts.append(upload(known, device))
    return parts[0] if len(parts) == 1 else torch.cat(parts)
