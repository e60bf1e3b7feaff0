"""prepare_inputs against its reference: decode, prompt chunks, drafts and padding in one batch."""

from __future__ import annotations

import torch

from thranite_kernels.launch import int32
from thranite_kernels.prepare_inputs import (
    RowPlan,
    SlotState,
    StepInputs,
    prepare_inputs,
    prepare_inputs_reference,
)

FIELDS = ("input_ids", "positions", "slot_mapping", "cu_q", "context_lens", "last_index")


def _batch(device: str) -> tuple[SlotState, RowPlan]:
    """Slot 3 decodes, slot 0 prefills 300 tokens, slot 2 verifies two drafts, two rows are padding."""
    state = SlotState(
        last_token=int32([11, 12, 13, 14], device),
        seq_len=int32([0, 5, 37, 16], device),
        block_table=torch.arange(4 * 20, dtype=torch.int32, device=device).reshape(4, 20) + 1,
    )
    plan = RowPlan(
        slots=int32([3, -1, 0, 2, -1], device),
        new=int32([1, 1, 300, 3, 1], device),
        from_last=int32([1, 1, 0, 1, 1], device),
        id_start=int32([0, 0, 0, 300, 0], device),
        ids=int32(list(range(100, 402)), device),
    )
    return state, plan


def test_matches_reference(device: str) -> None:
    """Every output, with a padded tail of tokens."""
    state, plan = _batch(device)
    expected = prepare_inputs_reference(state, plan, 320, block_size=16)
    out = StepInputs.allocate(5, 320, device)
    prepare_inputs(state, plan, out, block_size=16)
    for name in FIELDS:
        assert getattr(out, name).tolist() == getattr(expected, name).tolist(), name


def test_advance_adds_new_tokens_once(device: str) -> None:
    """Lengths move for the rows of the batch and for nobody else."""
    state, plan = _batch(device)
    prepare_inputs(state, plan, StepInputs.allocate(5, 306, device), block_size=16, advance=True)
    assert state.seq_len.tolist() == [300, 5, 40, 17]


def test_padding_points_at_the_null_page(device: str) -> None:
    """All rows padded: ids 0, page 0, no context."""
    state, plan = _batch(device)
    plan.slots.fill_(-1)
    plan.new.fill_(1)
    out = prepare_inputs(state, plan, StepInputs.allocate(5, 8, device), block_size=16)
    assert out.input_ids.tolist() == [0] * 8
    assert out.slot_mapping.tolist() == list(range(8))
    assert out.context_lens.tolist() == [0] * 5


def test_padded_rows_without_tokens_leave_no_gap(device: str) -> None:
    """A decode, two padded rows, a prompt, a padded row, and a tail: tokens of live rows follow each other at once."""
    state, _ = _batch(device)
    plan = RowPlan(
        slots=int32([3, -1, -1, 0, -1], device),
        new=int32([1, 0, 0, 4, 0], device),
        from_last=int32([1, 0, 0, 0, 0], device),
        id_start=int32([0, 0, 0, 0, 0], device),
        ids=int32([100, 101, 102, 103], device),
    )
    expected = prepare_inputs_reference(state, plan, 8, block_size=16)
    out = prepare_inputs(state, plan, StepInputs.allocate(5, 8, device), block_size=16, advance=True)
    for name in FIELDS:
        assert getattr(out, name).tolist() == getattr(expected, name).tolist(), name
    assert out.cu_q.tolist() == [0, 1, 1, 1, 5, 5]
    assert out.input_ids.tolist() == [14, 100, 101, 102, 103, 0, 0, 0]
    assert out.positions.tolist() == [16, 0, 1, 2, 3, 0, 0, 0]
    assert out.slot_mapping.tolist()[5:] == [5, 6, 7]  # on the null page
    assert state.seq_len.tolist() == [4, 5, 37, 17]
