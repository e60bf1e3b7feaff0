"""A device in plain Python: pages hold chained hashes of tokens, and the next token is a hash of what the pages say.

As in a real model, what is stored for a token depends on all tokens before it.

It executes plans exactly as `thranite.engine.plan` describes. Whatever the engine does wrong with tables, copies, reuse
or order changes some context as read through the pages, and so the tokens.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence

from thranite.engine.kv_groups import KVGroup, KVLayout
from thranite.engine.plan import Bitmasks, Prefill, SlotStart, StepPlan, StepResult
from thranite.engine.settings import EngineSettings
from thranite.request import TokenLogprobs
from thranite.sampling_params import TokenParams

VOCAB = 97


def layout(block_size: int, windows: Sequence[int | None] = (None,)) -> KVLayout:
    """A layout of one layer a group, a byte-sized head."""
    groups = tuple(KVGroup(window, (index,), "float32", 1, 1) for index, window in enumerate(windows))
    return KVLayout(block_size, groups, 1, block_size * 8)


def settings(
    block_size: int = 4, num_blocks: int = 64, windows: Sequence[int | None] = (None,), **changes: object
) -> EngineSettings:
    fields: dict[str, object] = {
        "layout": layout(block_size, windows),
        "num_blocks": num_blocks,
        "vocab_size": VOCAB,
        "max_model_len": 64,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 16,
        "watermark": 0.0,
    }
    return EngineSettings(**{**fields, **changes})  # type: ignore[arg-type]


def key_value(token: int, before: int) -> int:
    """What a page stores for a token that follows the stored `before`."""
    return hash((token, before)) & 0xFFFFFFFF


def next_token(params: TokenParams, sample_index: int, contexts: Sequence[tuple[int, ...]], position: int) -> int:
    """The model: a hash of each group's visible context, the seed, the sample and the position."""
    text = repr((params.seed, sample_index, position, [tuple(c) for c in contexts]))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little") % VOCAB


def reference(
    prompt: Sequence[int], params: TokenParams, sample_index: int, windows: Sequence[int | None], end: int
) -> list[int]:
    """What the model yields without pages, batches or steps."""
    tokens, stored = list(prompt), [0]
    for token in prompt:
        stored.append(key_value(token, stored[-1]))
    while len(tokens) < end:
        contexts = [tuple(stored[1:][-w:] if w else stored[1:]) for w in windows]
        tokens.append(next_token(params, sample_index, contexts, len(tokens)))
        stored.append(key_value(tokens[-1], stored[-1]))
        if tokens[-1] in params.eos_token_ids and len(tokens) - len(prompt) > params.min_tokens:
            break
    return tokens[len(prompt) :]


class PagedExecutor:
    """Executes at once, in order; results are handed out by `collect`, so with overlap the host sees them late."""

    def __init__(self, config: EngineSettings) -> None:
        self.config = config
        self.pages: dict[tuple[int, int], int] = {}  # (page, offset) → stored value
        self.tables: dict[tuple[int, int], dict[int, int]] = {}  # (slot, group) → index → page
        self.starts: dict[int, SlotStart] = {}
        self.length: dict[int, int] = {}
        self.last: dict[int, int] = {}
        self.results: deque[StepResult] = deque()
        self.plans: list[StepPlan] = []
        self.late_masks = 0

    def launch(self, plan: StepPlan) -> None:
        assert plan.num_tokens <= self.config.max_num_batched_tokens
        assert len(self.results) <= 1
        self.plans.append(plan)
        size = self.config.layout.block_size
        for source, target in plan.copies:
            for offset in range(size):
                if (source, offset) in self.pages:
                    self.pages[target, offset] = self.pages[source, offset]
        for start in plan.starts:
            self.starts[start.slot] = start
            self.length[start.slot] = start.length
            for group in range(len(self.config.layout.groups)):
                self.tables[start.slot, group] = {}
        for update in plan.blocks:
            for index, page in enumerate(update.blocks):
                self.tables[update.slot, update.group][update.first + index] = page
        written: set[tuple[int, int]] = set()
        for slot in plan.decodes:
            self._write(slot, [self.last[slot]], written)
        for prefill in plan.prefills:
            assert self.length[prefill.slot] == prefill.start
            assert len(prefill.token_ids) > 0
            self._write(prefill.slot, prefill.token_ids, written)

    def _write(self, slot: int, tokens: Sequence[int], written: set[tuple[int, int]]) -> None:
        size = self.config.layout.block_size
        for token in tokens:
            position = self.length[slot]
            for group in range(len(self.config.layout.groups)):
                place = (self.tables[slot, group][position // size], position % size)
                assert place[0] != 0, "a token is written to the null page"
                assert place not in written, "two rows write one place in one step"
                written.add(place)
                before = 0
                if position:
                    last = self.tables[slot, group][(position - 1) // size], (position - 1) % size
                    before = self.pages[last]
                self.pages[place] = key_value(token, before)
            self.length[slot] += 1

    def _contexts(self, slot: int, owner: int) -> list[tuple[int, ...]]:
        size, length = self.config.layout.block_size, self.length[owner]
        contexts = []
        for index, group in enumerate(self.config.layout.groups):
            first = 0 if group.window is None else max(length - group.window, 0)
            table = self.tables[owner, index]
            contexts.append(tuple(self.pages[table[p // size], p % size] for p in range(first, length)))
        return contexts

    def sample(self, masks: Bitmasks) -> None:
        plan = self.plans[-1]
        self.late_masks += len(masks)
        rows: list[tuple[int, int]] = [(slot, slot) for slot in plan.decodes]
        rows += [(slot, prefill.slot) for prefill in plan.prefills for slot in prefill.samples]
        tokens = []
        for slot, owner in rows:
            start, position = self.starts[slot], self.length[slot]
            token = next_token(start.params, start.sample_index, self._contexts(slot, owner), position)
            mask = masks.get(slot)
            while mask is not None and not mask[token >> 3] >> (token & 7) & 1:
                token = (token + 1) % VOCAB
            self.last[slot] = token
            tokens.append((token,))
        scores = {index: self._scores(p) for index, p in enumerate(plan.prefills) if p.prompt_logprobs is not None}
        self.results.append(StepResult(tokens, {}, scores))

    @staticmethod
    def _scores(prefill: Prefill) -> tuple[TokenLogprobs, ...]:
        return tuple(TokenLogprobs(t, -float(prefill.start + i), 1, ()) for i, t in enumerate(prefill.targets))

    def collect(self) -> StepResult:
        return self.results.popleft()

    def prepare(self) -> bool:
        return False

    def sleep(self) -> int:
        return 0

    def wake(self) -> int:
        return 0

    def close(self) -> None:
        self.results.clear()
