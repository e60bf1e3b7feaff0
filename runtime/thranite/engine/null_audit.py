"""What a device would find wrong with a step plan: the null device's checks, in service and for schedulers under test.

Slots must have been started, block tables must cover what is computed, and within a step no page may have two writers.
What the pages hold is not followed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from thranite.engine.kv_groups import KVLayout
from thranite.engine.plan import NULL_BLOCK, Prefill, SlotStart, StepPlan


class PlanError(AssertionError):
    """A plan that would corrupt a device's state: a defect of the scheduler."""


@dataclass(slots=True)
class SlotState:
    """One slot as the device knows it: tokens whose KV is in pages, tokens it can compute, a table a group."""

    length: int
    known: int
    tables: list[list[int]]


class PlanAudit:
    """Follows the slots' state from plan to plan. All methods raise PlanError."""

    def __init__(self, layout: KVLayout, num_blocks: int, num_slots: int) -> None:
        self._layout, self._num_blocks, self._num_slots = layout, num_blocks, num_slots
        self._slots: dict[int, SlotState] = {}
        self._writers: dict[int, int] = {}  # page → slot that writes it in this step
        self._step = 0

    def length(self, slot: int) -> int:
        """Tokens of the slot whose KV is in pages, the last checked step's included."""
        return self._slots[slot].length

    def check(self, plan: StepPlan) -> None:
        """Take the plan's state changes and rows in the order in which a device does."""
        self._step = plan.step
        self._writers = {}
        self._check_copies(plan)
        for start in plan.starts:
            self._start(start)
        for update in plan.blocks:
            self._update(update.group, update.slot, update.first, update.blocks)
        rows = [*plan.decodes, *(prefill.slot for prefill in plan.prefills)]
        self._require(len(set(rows)) == len(rows), f"a slot computes twice: {rows}")
        for slot in plan.decodes:
            self._compute(slot, self._slot(slot).length, 1)
        for prefill in plan.prefills:
            self._prefill(prefill)

    def sampled(self, slot: int) -> None:
        """The device drew a token for `slot`: its next decode can compute it."""
        self._slots[slot].known = self._slots[slot].length + 1

    def _check_copies(self, plan: StepPlan) -> None:
        sources, targets = [s for s, _ in plan.copies], [t for _, t in plan.copies]
        self._require(len(set(targets)) == len(targets), f"two copies into one page: {plan.copies}")
        self._require(not set(sources) & set(targets), f"a copy's source is another's target: {plan.copies}")
        named = {block for update in plan.blocks for block in update.blocks}
        for source, target in plan.copies:
            self._require_page(source)
            self._require_page(target)
            self._require(target in named, f"page {target} is copied into and enters no table")

    def _start(self, start: SlotStart) -> None:
        self._require(0 <= start.slot < self._num_slots, f"slot {start.slot} does not exist")
        known = len(start.token_ids)
        self._require(0 < start.prompt_len <= known, f"slot {start.slot}: prompt of {start.prompt_len} of {known}")
        self._require(0 <= start.length <= known, f"slot {start.slot} starts at {start.length} of {known} tokens")
        self._slots[start.slot] = SlotState(start.length, known, [[] for _ in self._layout.groups])

    def _update(self, group: int, slot: int, first: int, blocks: Sequence[int]) -> None:
        table = self._slot(slot).tables[group]
        for block in blocks:
            self._require(0 <= block < self._num_blocks, f"page {block} does not exist")
        table += [NULL_BLOCK] * (first - len(table))  # freed behind a window before the slot was started
        table[first : first + len(blocks)] = blocks

    def _prefill(self, prefill: Prefill) -> None:
        state = self._slot(prefill.slot)
        self._require(len(prefill.token_ids) > 0, f"slot {prefill.slot} computes nothing")
        self._require(
            prefill.start == state.length,
            f"slot {prefill.slot} holds {state.length} tokens; its prefill starts at {prefill.start}",
        )
        self._compute(prefill.slot, prefill.start, len(prefill.token_ids))
        for slot in prefill.samples:
            length = self._slot(slot).length
            self._require(
                length == state.length,
                f"slot {slot} holds {length} tokens and samples after {state.length} of slot {prefill.slot}",
            )

    def _compute(self, slot: int, start: int, count: int) -> None:
        """The KV of positions start … start + count - 1 is written."""
        state, size = self._slot(slot), self._layout.block_size
        end = start + count
        self._require(end <= state.known, f"slot {slot} computes position {end - 1} of {state.known} tokens")
        for group, table in enumerate(state.tables):
            self._require(
                len(table) * size >= end, f"slot {slot}, group {group}: {len(table)} pages for {end} positions"
            )
            for page in table[start // size : (end - 1) // size + 1]:
                self._require_page(page)
                writer = self._writers.setdefault(page, slot)
                self._require(writer == slot, f"slots {writer} and {slot} both write page {page}")
        state.length = end

    def _slot(self, slot: int) -> SlotState:
        self._require(slot in self._slots, f"slot {slot} was never started")
        return self._slots[slot]

    def _require_page(self, page: int) -> None:
        self._require(0 < page < self._num_blocks, f"page {page} is the null page or does not exist")

    def _require(self, ok: bool, message: str) -> None:
        if not ok:
            raise PlanError(f"step {self._step}: {message}")
