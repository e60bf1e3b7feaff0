"""What a device would find wrong with a step plan: the null device's checks, for schedulers under test and in service.

`PlanAudit` always checks slots, coverage and ownership within the step. With `contents` it also remembers, for every
page entry, the hash of the token prefix that was written there, and proves that each row reads its own prefix: that
costs time in proportion to the context and is for tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from thranite.engine.kv_groups import KVLayout
from thranite.engine.null_tokens import mix
from thranite.engine.plan import NULL_BLOCK, Prefill, SlotStart, StepPlan


class PlanError(AssertionError):
    """A plan that would corrupt a device's state: a defect of the scheduler."""


@dataclass(slots=True)
class SlotTable:
    """One slot as the device knows it. `prefixes[i]`: hash of tokens 0 … i, kept with `contents` only."""

    length: int
    tables: list[list[int]]
    prefixes: list[int] = field(default_factory=list)


class PlanAudit:
    def __init__(self, layout: KVLayout, num_blocks: int, num_slots: int, *, contents: bool = False) -> None:
        self._layout, self._num_blocks, self._num_slots = layout, num_blocks, num_slots
        self._contents = contents
        self._slots: dict[int, SlotTable] = {}
        self._pages: dict[int, dict[int, int]] = {}  # page → offset in it → prefix hash
        self._written: dict[int, int] = {}  # page → slot that writes it in this step
        self._step = 0

    def length(self, slot: int) -> int:
        """Tokens of the slot whose KV is in pages, this step's included once `check` has seen it."""
        return self._slots[slot].length

    def check(self, plan: StepPlan) -> None:
        """Take the plan's state changes and rows in the order in which a device does. Raises PlanError."""
        self._step = plan.step
        self._written = {}
        self._copy(plan)
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

    def sampled(self, slot: int, token: int) -> None:
        """The device drew `token` for `slot`; the slot's next decode computes it."""
        if self._contents:
            state = self._slots[slot]
            state.prefixes.append(_extend(state.prefixes[-1], token))

    def _copy(self, plan: StepPlan) -> None:
        sources, targets = [s for s, _ in plan.copies], [t for _, t in plan.copies]
        self._require(len(set(targets)) == len(targets), f"two copies into one page: {plan.copies}")
        self._require(not set(sources) & set(targets), f"a copy's source is another's target: {plan.copies}")
        named = {block for update in plan.blocks for block in update.blocks}
        for source, target in plan.copies:
            self._page(source)
            self._page(target)
            self._require(target in named, f"page {target} is copied into and enters no table")
            if self._contents:
                self._pages[target] = dict(self._pages.get(source, {}))

    def _start(self, start: SlotStart) -> None:
        self._require(0 <= start.slot < self._num_slots, f"slot {start.slot} does not exist")
        known = len(start.token_ids)
        self._require(0 < start.prompt_len <= known, f"slot {start.slot}: prompt of {start.prompt_len} of {known}")
        self._require(0 <= start.length <= known, f"slot {start.slot} starts at {start.length} of {known} tokens")
        prefixes = _prefixes(start.token_ids) if self._contents else []
        self._slots[start.slot] = SlotTable(start.length, [[] for _ in self._layout.groups], prefixes)

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
        if self._contents:
            self._same_tokens(prefill, state)
        self._compute(prefill.slot, prefill.start, len(prefill.token_ids))
        for slot in prefill.samples:
            sampler = self._slot(slot)
            self._require(
                sampler.length == state.length,
                f"slot {slot} samples after {state.length} tokens of slot {prefill.slot}, and holds {sampler.length}",
            )

    def _compute(self, slot: int, start: int, count: int) -> None:
        """Write the KV of positions start … start + count - 1, and read what attention reads."""
        state = self._slot(slot)
        size = self._layout.block_size
        for group, table in enumerate(state.tables):
            self._require(
                len(table) * size >= start + count,
                f"slot {slot}, group {group}: {len(table)} pages do not cover position {start + count - 1}",
            )
            for entry in range(start // size, (start + count - 1) // size + 1):
                page = table[entry]
                self._page(page)
                owner = self._written.setdefault(page, slot)
                self._require(owner == slot, f"slots {owner} and {slot} both write page {page}")
            if self._contents:
                self._require(
                    start + count <= len(state.prefixes),
                    f"slot {slot} computes position {start + count - 1}; it has {len(state.prefixes)} tokens",
                )
                self._read(slot, group, start)
                self._write(state, table, start, count)
        state.length = start + count

    def _read(self, slot: int, group: int, start: int) -> None:
        """Every position that the row's first token sees holds this sequence's prefix."""
        state, window = self._slots[slot], self._layout.groups[group].window
        first = 0 if window is None else max(start - window + 1, 0)
        for position in range(first, start):
            entry, offset = divmod(position, self._layout.block_size)
            page = state.tables[group][entry]
            held = None if page == NULL_BLOCK else self._pages.get(page, {}).get(offset)
            self._require(
                held == state.prefixes[position],
                f"slot {slot}, group {group}: page {page} does not hold position {position} of this sequence",
            )

    def _write(self, state: SlotTable, table: list[int], start: int, count: int) -> None:
        for position in range(start, start + count):
            entry, offset = divmod(position, self._layout.block_size)
            self._pages.setdefault(table[entry], {})[offset] = state.prefixes[position]

    def _same_tokens(self, prefill: Prefill, state: SlotTable) -> None:
        value = state.prefixes[prefill.start - 1] if prefill.start else 0
        for position, token in enumerate(prefill.token_ids, prefill.start):
            value = _extend(value, token)
            self._require(
                position < len(state.prefixes) and value == state.prefixes[position],
                f"slot {prefill.slot}: the prefill's token at {position} is not the one the slot was started with",
            )

    def _slot(self, slot: int) -> SlotTable:
        self._require(slot in self._slots, f"slot {slot} was never started")
        return self._slots[slot]

    def _page(self, page: int) -> None:
        self._require(0 < page < self._num_blocks, f"page {page} is the null page or does not exist")

    def _require(self, ok: bool, message: str) -> None:
        if not ok:
            raise PlanError(f"step {self._step}: {message}")


def _extend(prefix: int, token: int) -> int:
    return mix(prefix ^ mix(token + 1))


def _prefixes(tokens: Sequence[int]) -> list[int]:
    hashes: list[int] = []
    value = 0
    for token in tokens:
        value = _extend(value, token)
        hashes.append(value)
    return hashes
