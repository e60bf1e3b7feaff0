"""Host state of requests and their sequences. The scheduler and the engine are the only writers."""

from __future__ import annotations

from enum import Enum, auto

from thranite.engine.constraints import TokenConstraint
from thranite.engine.kv_manager import BlockTable
from thranite.request import EngineRequest, TokenLogprobs


class State(Enum):
    """FORKING: a sample of n > 1 whose prompt its first sibling still computes; its slot is reserved."""

    WAITING = auto()
    FORKING = auto()
    RUNNING = auto()
    FINISHED = auto()


class RequestState:
    """One accepted request: what its sequences share. Times are seconds of the engine's clock."""

    __slots__ = (
        "arrival", "cached_tokens", "deadline", "first_token", "open", "order", "pooled", "prompt_logprobs", "request",
        "scheduled", "sequences",
    )  # fmt: skip

    def __init__(
        self, request: EngineRequest, now: float, order: tuple[float, int], arrival: float | None = None
    ) -> None:
        self.request = request
        self.arrival = now if arrival is None else min(arrival, now)  # it may have waited for a step to end
        self.order = order  # smaller runs earlier; see RequestQueue
        self.deadline = None if request.timeout_seconds is None else now + request.timeout_seconds
        self.sequences: list[Sequence] = []
        self.open = request.params.n  # sequences not finished
        self.cached_tokens: int | None = None  # set until the prompt is scheduled, cleared once reported
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None  # grows chunk by chunk, None once reported
        self.scheduled: float | None = None  # when a step first computed a part of the prompt
        self.first_token: float | None = None
        self.pooled: list[float] | None = None  # grows chunk by chunk

    @property
    def leader(self) -> Sequence:
        return self.sequences[0]

    @property
    def uncomputed(self) -> int:
        """Tokens of the prompt still to compute."""
        leader = self.leader
        return 0 if leader.state is State.FINISHED else max(leader.prompt_len - leader.computed, 0)

    @property
    def running(self) -> bool:
        return any(seq.state is State.RUNNING for seq in self.sequences)

    @property
    def waiting(self) -> bool:
        """Accepted and not running: no sequence of it has a slot at work."""
        return not self.running and any(seq.state is State.WAITING for seq in self.sequences)


class Sequence:
    """One sample of a request.

    `tokens` are those the host knows (prompt, then output); `pending` more were sampled by steps not yet collected.
    `computed` tokens have their KV in pages, counting launched steps. `decoding`: the slot's device state holds its
    last token, the only one left to compute. `may_share`: the page under `computed` may belong to a fork too.
    A sequence that waits holds no pages and no slot; one that is FORKING no tokens either, or a queue would hold the
    prompts of large `n` as many times.
    """

    __slots__ = (
        "computed", "constraint", "decoding", "end", "endings", "forked", "index", "may_share", "needs_prompt_logprobs",
        "params", "parent", "pending", "planned_step", "prompt_len", "request_id", "slot", "state", "table", "token_at",
        "tokens",
    )  # fmt: skip

    def __init__(
        self, parent: RequestState, index: int, table: BlockTable, end: int, constraint: TokenConstraint | None
    ) -> None:
        request = parent.request
        self.parent = parent
        self.params = request.params
        self.request_id = request.request_id
        self.may_share = False
        self.index = index
        self.tokens: list[int] = list(request.prompt_token_ids) if index == 0 else []
        self.prompt_len = len(request.prompt_token_ids)
        self.end = end  # length at which it must stop
        self.endings = frozenset(request.params.eos_token_ids + request.params.stop_token_ids)
        self.computed = 0
        self.pending = 0
        self.decoding = False
        self.slot: int | None = None
        self.table = table
        self.state = State.WAITING if index == 0 else State.FORKING
        self.forked = request.params.n == 1 or index > 0  # whether siblings no longer wait for this prompt
        self.needs_prompt_logprobs = index == 0 and request.params.prompt_logprobs is not None
        self.constraint = constraint
        self.planned_step = -1
        self.token_at: float | None = None  # when its newest token became known

    @property
    def left(self) -> int:
        """Tokens that it may still produce, beyond those on their way."""
        return self.end - len(self.tokens) - self.pending

    @property
    def generated(self) -> int:
        """Tokens of its output that the host knows."""
        return max(len(self.tokens) - self.prompt_len, 0)

    @property
    def reads_prompt(self) -> bool:
        """Whether every prompt token must be computed for it, cached or not."""
        return self.needs_prompt_logprobs or self.params.pooling is not None

    @property
    def order(self) -> tuple[float, int, int]:
        return (*self.parent.order, self.index)
