"""Inputs of one step from per-slot state on the device: ids, positions, cache slots, query offsets.

The host sends only what changed: which slots run, how many tokens each, and ids that the device does not know yet
(prompt chunks, drafts). A decode row takes its id from `last_token`, which the sampler wrote one step before, so a step
can be launched before the tokens of the step before it were read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ._prepare_inputs import prepare_inputs_kernel
from .launch import Launch, require
from .work import Work


@dataclass(frozen=True, slots=True)
class SlotState:
    """Per-slot state that stays on the device; a slot is one running sequence."""

    last_token: torch.Tensor  # int32 [max_slots], the newest sampled token
    seq_len: torch.Tensor  # int32 [max_slots], tokens whose keys and values are in the cache
    block_table: torch.Tensor  # int32 [max_slots, max_blocks], pages of the sequence; page 0 is the null page


@dataclass(frozen=True, slots=True)
class RowPlan:
    """What the host decided for one step, one entry a row; a padded row has slot −1."""

    slots: torch.Tensor  # int32 [R]
    new: torch.Tensor  # int32 [R], query tokens of the row; a padded row may have some, which are padding, or none
    from_last: torch.Tensor  # int32 [R], 1: the first id is last_token[slot], 0: all ids are in `ids`
    id_start: torch.Tensor  # int32 [R], where the row's own ids start in `ids`
    ids: torch.Tensor  # int32 [*], ids sent by the host, without those taken from last_token


@dataclass(frozen=True, slots=True)
class StepInputs:
    """Outputs of `prepare_inputs`; T may be larger than the rows' tokens, the tail is padding on page 0."""

    input_ids: torch.Tensor  # int32 [T]
    positions: torch.Tensor  # int32 [T]
    slot_mapping: torch.Tensor  # int64 [T], page · block_size + offset
    cu_q: torch.Tensor  # int32 [R + 1], query token offsets
    context_lens: torch.Tensor  # int32 [R], length including this step's tokens; 0 for a padded row
    last_index: torch.Tensor  # int64 [R], index of the row's last query token (where its logits are)

    @classmethod
    def allocate(cls, rows: int, tokens: int, device: torch.device | str) -> StepInputs:
        """Uninitialised buffers for `rows` rows and `tokens` tokens."""

        def empty(n: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.empty(n, dtype=dtype, device=device)

        i32, i64 = torch.int32, torch.int64
        return cls(
            empty(tokens, i32),
            empty(tokens, i32),
            empty(tokens, i64),
            empty(rows + 1, i32),
            empty(rows, i32),
            empty(rows, i64),
        )


def prepare_inputs(
    state: SlotState, plan: RowPlan, out: StepInputs, *, block_size: int, advance: bool = False
) -> StepInputs:
    """Fill `out`; with `advance`, also add each row's new tokens to `state.seq_len` (once the step is launched)."""
    prepare_inputs_launch(state, plan, out, block_size=block_size, advance=advance).run()
    return out


def prepare_inputs_launch(
    state: SlotState, plan: RowPlan, out: StepInputs, *, block_size: int, advance: bool
) -> Launch:
    """The launch behind `prepare_inputs`: R + 1 programs, each summing the rows before it."""
    rows = plan.slots.shape[0]
    require(out.cu_q.shape[0] == rows + 1, "prepare_inputs: cu_q must have one entry more than there are rows")
    require(state.block_table.stride(1) == 1, "prepare_inputs: block_table rows must be contiguous")
    return Launch(
        prepare_inputs_kernel,
        (rows + 1,),
        {
            "slots_ptr": plan.slots,
            "new_ptr": plan.new,
            "from_last_ptr": plan.from_last,
            "id_start_ptr": plan.id_start,
            "ids_ptr": plan.ids,
            "last_token_ptr": state.last_token,
            "seq_len_ptr": state.seq_len,
            "table_ptr": state.block_table,
            "stride_table": state.block_table.stride(0),
            "input_ids_ptr": out.input_ids,
            "positions_ptr": out.positions,
            "slot_mapping_ptr": out.slot_mapping,
            "cu_q_ptr": out.cu_q,
            "context_ptr": out.context_lens,
            "last_index_ptr": out.last_index,
            "rows": rows,
            "tokens": out.input_ids.shape[0],
        },
        {"BLOCK_SIZE": block_size, "BLOCK_R": 1024, "BLOCK_T": 256, "ADVANCE": advance},
    )


def prepare_inputs_reference(state: SlotState, plan: RowPlan, tokens: int, *, block_size: int) -> StepInputs:
    """The same row by row on the CPU, nothing written in place."""
    rows = plan.slots.shape[0]
    out = StepInputs.allocate(rows, tokens, "cpu")
    out.input_ids.zero_()
    out.positions.zero_()
    out.slot_mapping.copy_(torch.arange(tokens) % block_size)
    out.cu_q[0] = 0
    at = 0
    for r in range(rows):
        slot, new = int(plan.slots[r]), int(plan.new[r])
        past = int(state.seq_len[slot]) if slot >= 0 else 0
        for j in range(new if slot >= 0 else 0):
            taken = int(plan.from_last[r])
            source = state.last_token[slot] if j < taken else plan.ids[int(plan.id_start[r]) + j - taken]
            position = past + j
            out.input_ids[at + j] = source
            out.positions[at + j] = position
            page = int(state.block_table[slot, position // block_size])
            out.slot_mapping[at + j] = page * block_size + position % block_size
        at += new
        out.cu_q[r + 1] = at
        out.context_lens[r] = past + new if slot >= 0 else 0
        out.last_index[r] = at - new + max(new, 1) - 1
    return out


def prepare_inputs_work(rows: int, tokens: int) -> Work:
    """Seven int32 read and three written a row; one id and one page read, 16 bytes written a token."""
    return Work(bytes=rows * 44 + tokens * 24)
