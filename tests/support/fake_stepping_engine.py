"""An engine without scheduler or device, for tests of everything around it. Some prompts make it misbehave."""

from __future__ import annotations

import time
from collections import Counter

from thranite.engine.client import EngineInfo
from thranite.engine.stats import EngineStats
from thranite.engine.step_time import StepLoad
from thranite.errors import InvalidRequest, Rejected
from thranite.request import EngineRequest, FinishReason, SequenceDelta

# First prompt tokens: raise in the step, never finish it, end by a deadline, ask for more memory than there is.
BOOM, HANG, EXPIRE, HUNGER = 501, 502, 503, 504

INFO = EngineInfo(
    max_model_len=2048,
    vocab_size=512,
    max_num_seqs=8,
    num_kv_blocks=100,
    block_size=16,
    eos_token_ids=(2,),
    architecture="Fake",
    dtype="float32",
    seed=0,
)


class FakeEngine:
    """Each step brings every open sequence one token: 10, 11, 12, …"""

    def __init__(self, step_seconds: float = 0.0, max_requests: int = 100) -> None:
        self._step_seconds, self._max_requests = step_seconds, max_requests
        self._requests: dict[str, EngineRequest] = {}
        self._lengths: dict[tuple[str, int], int] = {}
        self._draining = self._sleepy = False
        self.counters: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.finished: Counter[str] = Counter()
        self.integrity_checks = 0
        self.arrivals: list[float | None] = []
        self.to_prepare = 0  # things
        self.prepared: list[int] = []  # open requests at each call

    def add(self, request: EngineRequest, arrival: float | None = None) -> None:
        self.arrivals.append(arrival)
        self.counters["received"] += 1
        if not request.prompt_token_ids:
            self.rejected["invalid"] += 1
            raise InvalidRequest("the prompt is empty", "prompt", "empty")
        if self._draining:
            self.rejected["draining"] += 1
            raise Rejected("the server is draining: it takes no new requests", "draining")
        if self._sleepy:
            self.rejected["asleep"] += 1
            raise Rejected("the model is asleep", "asleep")
        if len(self._requests) >= self._max_requests:
            self.rejected["queue_full"] += 1
            raise Rejected("too many requests wait", "queue_full", 3.0)
        self._requests[request.request_id] = request
        for index in range(request.params.n):
            self._lengths[request.request_id, index] = 0

    def set_draining(self, draining: bool) -> None:
        self._draining = draining

    def set_sleepy(self, sleepy: bool) -> None:
        self._sleepy = sleepy

    def prepare(self) -> bool:
        self.prepared.append(len(self._requests))
        return len(self.prepared) < self.to_prepare

    def sleep(self) -> int:
        assert not self._requests
        self._sleepy = True
        return 1 << 30

    def wake(self) -> int:
        self._sleepy = False
        return 0

    def abort(self, request_id: str) -> None:
        request = self._requests.pop(request_id, None)
        if request is not None:
            self.finished["abort"] += 1
            for index in range(request.params.n):
                self._lengths.pop((request_id, index), None)

    def stop(self, request_id: str, index: int) -> None:
        self._lengths.pop((request_id, index), None)
        self._forget_if_done(request_id, FinishReason.STOP)

    def step(self) -> list[SequenceDelta]:
        time.sleep(self._step_seconds)
        deltas = []
        for (request_id, index), length in list(self._lengths.items()):
            request = self._requests[request_id]
            self._misbehave(request.prompt_token_ids[0])
            ended = length + 1 >= request.params.max_tokens
            reason = FinishReason.LENGTH if ended else None
            if request.prompt_token_ids[0] == EXPIRE and length == 2:
                ended, reason = True, FinishReason.TIMEOUT
            deltas.append(SequenceDelta(request_id, index, (10 + length,), reason))
            self._lengths[request_id, index] = length + 1
            if ended:
                del self._lengths[request_id, index]
                self._forget_if_done(request_id, reason or FinishReason.LENGTH)
        self.counters["steps"] += 1
        self.counters["tokens"] += len(deltas)
        return deltas

    def _misbehave(self, token: int) -> None:
        if token == BOOM:
            raise RuntimeError("boom")
        if token == HUNGER:
            bytearray(2**60)
        if token == HANG:
            time.sleep(3600)

    def _forget_if_done(self, request_id: str, reason: FinishReason) -> None:
        if request_id in self._requests and not any(key[0] == request_id for key in self._lengths):
            del self._requests[request_id]
            self.finished[reason.value] += 1

    @property
    def has_work(self) -> bool:
        return bool(self._lengths)

    @property
    def plan_at(self) -> float:
        return 0.0

    def load(self, most: int) -> StepLoad:
        return StepLoad(min(len(self._lengths), most), 0)

    def stats(self) -> EngineStats:
        return EngineStats(
            requests_running=len(self._requests),
            sleeping=self._sleepy,
            kv_blocks=INFO.num_kv_blocks,
            block_size=INFO.block_size,
            requests_received_total=self.counters["received"],
            requests_finished_total=dict(self.finished),
            requests_rejected_total=dict(self.rejected),
            generation_tokens_total=self.counters["tokens"],
            steps_total=self.counters["steps"],
        )

    def check_integrity(self) -> None:
        self.integrity_checks += 1

    def close(self) -> None:
        self._requests.clear()
