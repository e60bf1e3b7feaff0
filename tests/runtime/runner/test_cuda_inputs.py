"""What the host sends of a step lays out the same tokens whatever room a graph has, without gaps. On the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from thranite.engine.plan import Prefill, StepPlan
from thranite.runner.cuda_inputs import pack
from thranite.runner.step_shape import StepShape, shape_of
from thranite_kernels.prepare_inputs import RowPlan, SlotState, StepInputs, prepare_inputs_reference

PLANS = {
    "decodes and prompts": StepPlan(
        1,
        decodes=[4, 2],
        prefills=[Prefill(0, 0, [50, 51, 52], (0,)), Prefill(5, 3, [60, 61], ()), Prefill(1, 0, [70], (1,))],
    ),
    "a prompt": StepPlan(1, prefills=[Prefill(3, 0, range(9), (3,))]),
    "forks": StepPlan(1, decodes=[4], prefills=[Prefill(0, 0, [50, 51], (0, 1, 2)), Prefill(5, 0, [60], (5,))]),
    "decodes": StepPlan(1, decodes=[5, 0, 1]),
    "nothing": StepPlan(1),
}
SLOTS, BLOCK = 6, 4


def laid_out(plan: StepPlan, shape: StepShape) -> tuple[StepInputs, list[int], list[int], list[int]]:
    """The step's inputs, and of each sample its slot, the token that it reads and where its own token will stand."""
    packed = torch.from_numpy(pack(plan, shape))
    assert packed.dtype == torch.int32
    slots, new, from_last, id_start, sample_slots, sampled, ids = torch.split(packed, shape.parts)
    state = SlotState(
        last_token=torch.arange(SLOTS, dtype=torch.int32) + 100,
        seq_len=torch.tensor([0, 0, 8, 0, 5, 3], dtype=torch.int32),
        block_table=torch.arange(SLOTS * 4, dtype=torch.int32).reshape(SLOTS, 4) + 1,
    )
    rows = RowPlan(slots=slots, new=new, from_last=from_last, id_start=id_start, ids=ids)
    inputs = prepare_inputs_reference(state, rows, shape.tokens, block_size=BLOCK)
    picked = sampled.long()
    return inputs, sample_slots.tolist(), inputs.last_index[picked].tolist(), inputs.context_lens[picked].tolist()


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("spare", [(0, 0, 0), (3, 2, 0), (1, 0, 7), (9, 4, 20)])
def test_room_changes_nothing_of_the_tokens(name: str, spare: tuple[int, int, int]) -> None:
    plan = PLANS[name]
    exact = shape_of(plan)
    decodes, prompts, padding = spare
    shape = StepShape(
        exact.decodes + decodes, exact.prompts + prompts, exact.samples + decodes + prompts, exact.tokens + padding
    )
    assert shape.holds(exact)
    (want, *wanted), (got, *samples) = laid_out(plan, exact), laid_out(plan, shape)
    count, live = plan.num_tokens, len(plan.sample_slots)
    for field in ("input_ids", "positions", "slot_mapping"):
        assert getattr(got, field)[:count].tolist() == getattr(want, field).tolist(), field
    assert (got.slot_mapping[count:] < BLOCK).all()  # padding is written to the null page
    assert [values[:live] for values in samples] == [values[:live] for values in wanted]
    assert samples[0][live:] == [-1] * (shape.samples - live)
    assert all(0 <= token < max(shape.tokens, 1) for token in samples[1])
    lengths = [*[1] * exact.decodes, *[0] * decodes, *(len(p.token_ids) for p in plan.prefills), *[0] * prompts]
    assert got.cu_q.tolist() == [0, *np.cumsum(lengths)]


def test_a_step_as_the_device_sees_it() -> None:
    """Two decodes, then three prompts: where each token comes from and goes to."""
    inputs, slots, tokens, positions = laid_out(PLANS["decodes and prompts"], StepShape(4, 4, 8, 10))
    assert inputs.input_ids.tolist() == [104, 102, 50, 51, 52, 60, 61, 70, 0, 0]
    assert inputs.positions.tolist() == [5, 8, 0, 1, 2, 3, 4, 0, 0, 0]
    assert inputs.cu_q.tolist() == [0, 1, 2, 2, 2, 5, 7, 8, 8]
    assert inputs.context_lens.tolist() == [6, 9, 0, 0, 3, 5, 1, 0]
    assert slots == [4, 2, 0, 1, -1, -1, -1, -1]
    assert tokens[:4] == [0, 1, 4, 7]
    assert positions[:4] == [6, 9, 3, 1]
