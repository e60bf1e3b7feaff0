"""Which tokens the next step computes. Policy only: no torch, no clock of its own, no I/O.

One token budget a step, of which prompts may be given a share only (`PromptShare`). In this order: sequences that
decode (one token each, unless they pause: all for a pile of prompts, or in a batch a few for whole tiles), prompts
under way, then waiting ones in queue order while memory admits them. Within each, earlier `order` first. When pages run
out, the sequence with the latest order that is not in the plan yet is preempted: its pages are freed and it waits at
the queue's front, to be recomputed (mostly from the prefix cache, where its full blocks stay).
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass, field

from thranite.engine.constraints import make_constraint
from thranite.engine.kv_manager import KVCacheManager
from thranite.engine.plan import BlockUpdate, Prefill, SlotStart, StepPlan
from thranite.engine.prompt_share import PromptShare, Share
from thranite.engine.request_queue import RequestQueue
from thranite.engine.sequence import RequestState, Sequence, State
from thranite.engine.settings import EngineSettings
from thranite.engine.whole_tiles import rows_beyond_tiles
from thranite.request import EngineRequest


@dataclass(slots=True)
class ScheduledStep:
    """A plan, and whose rows it holds: `samples[i]` is the sequence of the plan's i-th sample."""

    plan: StepPlan
    samples: list[Sequence]
    prefills: list[Sequence]
    late: bool  # some sample waits for a bitmask
    launched_at: float = 0.0

    @property
    def prompt_tokens(self) -> int:
        return sum(len(prefill.token_ids) for prefill in self.plan.prefills)


@dataclass(slots=True)
class _Draft:
    """A plan while it is made."""

    step: int
    budget: int  # tokens, less those of sequences that decode
    share: int = 0  # of those, what prompts may still take
    decodes: list[int] = field(default_factory=list)
    decoding: list[Sequence] = field(default_factory=list)
    prefills: list[Prefill] = field(default_factory=list)
    prefilling: list[Sequence] = field(default_factory=list)
    forked: list[Sequence] = field(default_factory=list)  # samples of the prefills, in order
    starts: list[SlotStart] = field(default_factory=list)
    blocks: list[BlockUpdate] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    preempted: bool = False


class Scheduler:
    """Owns the queue, the running sequences, the slots and, through `kv`, the pages."""

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self.kv = KVCacheManager(
            settings.layout, settings.num_blocks, enable_prefix_caching=settings.enable_prefix_caching
        )
        self.queue = RequestQueue(settings.priority_aging_seconds)
        self.running: list[Sequence] = []  # in order, which never changes while a sequence runs
        self.preemptions = 0
        self.prefix_queries = 0  # tokens looked up
        self.prefix_hits = 0  # tokens found
        self.max_running = settings.max_num_seqs  # the engine lowers it where it keeps to a target
        self.step_tokens = settings.max_num_batched_tokens  # of a step at most; fewer for a batch that gains by it
        self.whole_tiles = False  # whether sequences pause where the others fill a device's tiles
        self.prompt_share: PromptShare | None = None  # the engine's, where steps have a pace to keep
        self.held: list[Sequence] = []  # whose constraints the last plan found not to be ready
        self.limited = False  # whether the last plan left sequences waiting for `max_running` alone
        self._free_slots = list(range(settings.max_num_seqs - 1, -1, -1))
        self._watermark = int(settings.watermark * settings.num_blocks)
        self._step = 0

    @property
    def has_work(self) -> bool:
        return bool(self.running) or len(self.queue) > 0 or self.queue.refill is not None

    # --- requests in and out

    @property
    def takes_more(self) -> bool:
        """Whether a request that comes now could run in the next step."""
        return len(self.queue) == 0 and len(self.running) < self.max_running

    def add(self, request: EngineRequest, now: float, arrival: float | None = None) -> RequestState:
        """Queue a request that can fit; its sequences exist from now on."""
        order = self.queue.order(request.priority, now)
        parent = RequestState(request, now, order, arrival)
        params, prompt = request.params, request.prompt_token_ids
        end = min(len(prompt) + params.max_tokens, self.settings.max_model_len)
        for index in range(params.n):
            constraint = make_constraint(
                params, self.settings.vocab_size, prompt, request.grammar, self.settings.grammars
            )
            parent.sequences.append(Sequence(parent, index, self.kv.new_table(request.cache_salt), end, constraint))
        self.queue.push(parent.leader)
        return parent

    def finish(self, seq: Sequence) -> None:
        """End a sequence in any state; pages and slot are free for the next plan."""
        state, seq.state = seq.state, State.FINISHED
        if state is State.WAITING:
            self.queue.discard(seq)
        elif state is State.RUNNING:
            self.running.remove(seq)
        self._vacate(seq)

    def _vacate(self, seq: Sequence) -> None:
        self.kv.free(seq.table)
        if seq.slot is not None:
            self._free_slots.append(seq.slot)
            seq.slot = None

    def commit(self, seq: Sequence) -> None:
        """Offer the sequence's full blocks for reuse, after its tokens became known."""
        if seq.state is State.RUNNING:
            self.kv.commit(seq.table, seq.tokens, seq.computed)

    # --- one step

    def plan(self) -> ScheduledStep | None:
        """The next step, or None if nothing can be computed before a step in flight is collected."""
        self._step += 1
        self.held = []
        draft = _Draft(self._step, self.step_tokens)
        begun = [seq for seq in self.running if not seq.decoding]
        share = self._share_of(begun)
        if not share.pause:
            self._plan_decodes(draft, self._decode_rows(begun))
        draft.share = draft.budget if share.tokens is None else min(share.tokens - len(draft.decodes), draft.budget)
        for seq in begun:
            if seq.state is State.RUNNING and draft.share > 0:
                self._plan_prefill(seq, draft)
        if not draft.preempted:
            self._admit(draft)
        if share.pause and not draft.prefills:  # what could sample has no bitmask yet
            self._plan_decodes(draft, draft.budget)
        if not draft.decodes and not draft.prefills and not draft.starts:
            return None
        plan = StepPlan(draft.step, draft.decodes, draft.prefills, draft.starts, draft.blocks, draft.copies)
        samples = draft.decoding + draft.forked
        late = any(seq.constraint is not None for seq in samples)
        return ScheduledStep(plan, samples, draft.prefilling, late)

    def _decode_rows(self, begun: list[Sequence]) -> int:
        """How many sequences decode at most. In a batch of known lengths whose prompts are done, the last to have
        begun pause where the others fill tiles, if each has fewer tokens left than the first, so that it ends no later,
        and if there are pages for all until those who pause have ended, whoever else does meanwhile."""
        rows = len(self.running)
        beyond = rows_beyond_tiles(rows)
        if not self.whole_tiles or not beyond or begun or len(self.queue) or self.queue.refill is not None:
            return rows
        left = max(seq.left for seq in self.running[-beyond:])
        steps = left + max(seq.left for seq in self.running[-2 * beyond : -beyond])  # as many of these end before
        pages = rows * (steps // self.kv.block_size + 1) * len(self.settings.layout.groups)
        may_pause = left < self.running[0].left and pages + self._watermark <= self.kv.pool.num_free
        return rows - beyond if may_pause else rows

    def _plan_decodes(self, draft: _Draft, rows: int) -> None:
        """One token for each sequence that decodes, and for `rows` of them at most.

        The host's hottest loop: a sequence within its last page, which it does not share, needs no more than counting.
        """
        size, step, running, room = self.kv.block_size, draft.step, State.RUNNING, min(rows, draft.budget)
        decodes, decoding = draft.decodes, draft.decoding
        for seq in list(self.running):
            if not seq.decoding:
                continue
            if seq.state is not running or room == 0 or len(seq.tokens) + seq.pending >= seq.end:
                continue  # preempted in this step; no room; its last token is in flight
            if seq.may_share or seq.computed % size == 0:
                if not self._grow(seq, seq.computed + 1, draft, preempt_self=True):
                    continue
                seq.may_share = False  # the page was copied, or is this sequence's alone
            seq.planned_step = step
            seq.computed += 1
            seq.pending += 1
            room -= 1
            decodes.append(seq.slot if seq.slot is not None else self._slot(seq))
            decoding.append(seq)
        draft.budget -= len(decodes)

    def _share_of(self, begun: list[Sequence]) -> Share:
        """What prompts may take. Nobody pauses for prompts that would then take the memory of those who do."""
        decodes = len(self.running) - len(begun)
        if self.prompt_share is None or not decodes:
            return Share(None)
        pile = self._admissible_tokens() + sum(len(seq.tokens) - seq.computed for seq in begun)
        pages = (pile // self.kv.block_size + len(begun) + len(self.queue)) * len(self.settings.layout.groups)
        return self.prompt_share.next(decodes, pile, may_pause=pages + self._watermark <= self.kv.pool.num_free)

    def _admissible_tokens(self) -> int:
        """About how many tokens of waiting prompts have a slot to run in: others' turn comes when sequences end."""
        waiting = len(self.queue)
        room = min(len(self._free_slots), max(self.max_running - len(self.running), 0))
        return self.queue.tokens * min(room, waiting) // max(waiting, 1)

    def _plan_prefill(self, seq: Sequence, draft: _Draft) -> None:
        end = min(seq.computed + draft.share, len(seq.tokens))
        if end == len(seq.tokens) and not self._may_sample(seq):
            self.held.append(seq)
            end -= 1
        if end == seq.computed or not self._grow(seq, end, draft, preempt_self=False):
            return
        slot, start, done = self._slot(seq), seq.computed, end == len(seq.tokens)
        sampling = [seq, *self._fork(seq, end, draft)] if done else []
        draft.prefills.append(
            Prefill(
                slot=slot,
                start=start,
                token_ids=seq.tokens[start:end],
                samples=tuple(self._slot(s) for s in sampling),
                prompt_logprobs=seq.params.prompt_logprobs if seq.needs_prompt_logprobs else None,
                targets=seq.tokens[start + 1 : end + 1] if seq.needs_prompt_logprobs else (),
                pooling=seq.params.pooling,
            )
        )
        draft.prefilling.append(seq)
        draft.forked.extend(sampling)
        draft.share -= end - start
        seq.computed = end
        self.kv.commit(seq.table, seq.tokens, end)
        for sample in sampling:
            sample.pending += 1
            sample.decoding = True

    def wait_for_held(self, seconds: float) -> bool:
        """Until a sequence that the last plan held back may sample, or for so long. False: it held none back."""
        late = [member.constraint for seq in self.held for member in self._gang(seq) if member.constraint is not None]
        constraint = next((constraint for constraint in late if not constraint.ready), None)
        if constraint is not None:
            constraint.wait(seconds)
        return bool(self.held)

    def _may_sample(self, seq: Sequence) -> bool:
        """Whether all that would sample at the end of the prompt know what they may."""
        return all(member.constraint is None or member.constraint.ready for member in self._gang(seq))

    def _fork(self, leader: Sequence, end: int, draft: _Draft) -> Iterable[Sequence]:
        """Start the siblings of a prompt just planned to its end, over the same pages."""
        if leader.forked:
            return
        leader.forked = True
        for seq in leader.parent.sequences:
            if seq.state is State.FORKING:
                seq.tokens = list(seq.parent.request.prompt_token_ids)
                seq.table = self.kv.fork(leader.table)
                seq.may_share = leader.may_share = True
                seq.computed = end
                self._start(seq, draft)
                yield seq

    def _start(self, seq: Sequence, draft: _Draft) -> None:
        """Put a sequence that has a slot and its first pages to work."""
        slot = self._slot(seq)
        seq.state = State.RUNNING
        seq.planned_step = draft.step
        insort(self.running, seq, key=_order)
        late = seq.constraint is not None
        draft.starts.append(
            SlotStart(slot, seq.index, seq.params, tuple(seq.tokens), seq.prompt_len, seq.computed, late)
        )
        draft.blocks.extend(self.kv.updates_of(seq.table, slot))

    def _slot(self, seq: Sequence) -> int:
        if seq.slot is None:
            raise RuntimeError(f"sequence {seq.index} of {seq.request_id} is planned without a slot")
        return seq.slot

    # --- memory

    def _grow(self, seq: Sequence, end: int, draft: _Draft, *, preempt_self: bool) -> bool:
        """Make positions up to `end` writable, at others' cost if need be. False: not in this step."""
        self.kv.trim(seq.table, seq.computed)
        need = self.kv.blocks_to_grow(seq.table, seq.computed, end)
        while need > self.kv.pool.num_free:
            victim = self._victim(draft.step)
            if victim is None or (victim is seq and not preempt_self):
                return False
            self._preempt(victim)
            draft.preempted = True
            if victim is seq:
                return False
            need = self.kv.blocks_to_grow(seq.table, seq.computed, end)  # a shared page may be shared no more
        self.kv.grow(seq.table, self._slot(seq), seq.computed, end, draft.blocks, draft.copies)
        seq.planned_step = draft.step
        return True

    def _victim(self, step: int) -> Sequence | None:
        """The latest running sequence that this step does not compute."""
        return next((seq for seq in reversed(self.running) if seq.planned_step != step), None)

    def _preempt(self, seq: Sequence) -> None:
        self.preemptions += 1
        self.running.remove(seq)
        self.kv.free(seq.table)
        seq.computed = 0
        seq.decoding = False
        seq.state = State.WAITING
        for member in self._gang(seq):
            if member.slot is not None:
                self._free_slots.append(member.slot)
                member.slot = None
        self.queue.push(seq, preempted=True)

    def _gang(self, seq: Sequence) -> list[Sequence]:
        """The sequences that need slots when `seq` is admitted: itself, and siblings that wait for its prompt."""
        if seq.forked:
            return [seq]
        return [seq, *(other for other in seq.parent.sequences if other.state is State.FORKING)]

    def _admit(self, draft: _Draft) -> None:
        """Start waiting sequences, strictly in queue order, until one does not fit."""
        self.limited = False
        if self.queue.peek() is None:
            return
        owed = sum(self._debt(seq) for seq in self.running if not seq.decoding)
        while draft.share > 0:
            seq = self.queue.peek()
            if seq is None or seq.pending or len(self._gang(seq)) > len(self._free_slots):
                return
            if self.running and len(self.running) + len(self._gang(seq)) > self.max_running:
                self.limited = True
                return
            hit = 0 if seq.reads_prompt else self.kv.find_prefix(seq.table, seq.tokens)
            free = self.kv.free_after_prefix(seq.table, hit) - owed - self._debt(seq, hit)
            margin = self._watermark + (len(self._gang(seq)) - 1) * len(self.settings.layout.groups)
            if free < (margin if self.running else 0):
                return
            self._start_prompt(seq, hit, draft)
            owed += self._debt(seq)

    def _start_prompt(self, seq: Sequence, hit: int, draft: _Draft) -> None:
        """Admit the queue's head with `hit` cached blocks and plan its first chunk."""
        self.queue.pop()
        for member in self._gang(seq):
            member.slot = self._free_slots.pop()
        self.kv.claim_prefix(seq.table, hit)
        seq.computed = hit * self.kv.block_size
        if not seq.reads_prompt:
            self.prefix_queries += len(seq.tokens)
            self.prefix_hits += seq.computed
        if seq.parent.scheduled is None:
            seq.parent.cached_tokens = seq.computed
        self._start(seq, draft)
        self._plan_prefill(seq, draft)

    def _debt(self, seq: Sequence, hit: int | None = None) -> int:
        """Pages the sequence will take until its known tokens and one more are computed."""
        chunk = self.settings.max_num_batched_tokens
        return self.kv.debt(seq.table, len(seq.tokens) + 1, chunk, hit)

    def check_integrity(self) -> None:
        """Prove who owns what. Raises RuntimeError."""
        self.kv.check_integrity(seq.table for seq in self.running)
        held = [seq.slot for seq in self._slot_holders() if seq.slot is not None]
        if sorted([*held, *self._free_slots]) != list(range(self.settings.max_num_seqs)):
            raise RuntimeError(f"slots {sorted(held)} are held and {sorted(self._free_slots)} free")

    def _slot_holders(self) -> list[Sequence]:
        parents = {id(seq.parent): seq.parent for seq in self.running}
        return [seq for parent in parents.values() for seq in parent.sequences if seq.slot is not None]


def _order(seq: Sequence) -> tuple[float, int, int]:
    return seq.order
