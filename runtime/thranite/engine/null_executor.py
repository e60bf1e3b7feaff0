"""The null device: real plans, made-up tokens, a set pace. For load tests, the operator's tests and schedulers' tests.

It imports no torch. Every plan is checked as `null_audit` says; a plan that would corrupt a device raises PlanError.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass

from thranite.config import EngineConfig
from thranite.engine.null_audit import PlanAudit, PlanError
from thranite.engine.null_tokens import TokenMaker
from thranite.engine.plan import Bitmasks, Prefill, SlotStart, StepPlan, StepResult
from thranite.engine.settings import EngineSettings
from thranite.request import TokenLogprobs

MAX_STEPS_IN_FLIGHT = 2


@dataclass(frozen=True, slots=True)
class NullPace:
    """Seconds a step takes: `step`, and besides for each prompt token and each row (running sequence) it computes."""

    step: float = 0.0
    prompt_token: float = 0.0
    row: float = 0.0

    @classmethod
    def of(cls, config: EngineConfig) -> NullPace:
        return cls(config.null_step_seconds, config.null_prompt_token_seconds, config.null_row_seconds)

    def seconds(self, plan: StepPlan) -> float:
        prompt_tokens = sum(len(prefill.token_ids) for prefill in plan.prefills)
        rows = len(plan.decodes) + len(plan.prefills)
        return self.step + self.prompt_token * prompt_tokens + self.row * rows


@dataclass(frozen=True, slots=True)
class _Launched:
    plan: StepPlan
    ready_at: float


@dataclass(frozen=True, slots=True)
class _Sampled:
    result: StepResult
    ready_at: float


class NullExecutor:
    """Implements `plan.Executor`. `eos_token_ids`: the model's, kept from requests that ignore them."""

    def __init__(
        self,
        settings: EngineSettings,
        pace: NullPace,
        *,
        eos_token_ids: Collection[int] = (),
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._vocab_size, self._eos = settings.vocab_size, eos_token_ids
        self._pace, self._clock, self._sleep = pace, clock, sleep
        self._audit = PlanAudit(settings.layout, settings.num_blocks, settings.max_num_seqs)
        self._starts: dict[int, SlotStart] = {}
        self._makers: dict[int, TokenMaker] = {}
        self._launched: _Launched | None = None
        self._sampled: deque[_Sampled] = deque()
        self._free_at = 0.0  # when the pretended device has done all it was given

    def launch(self, plan: StepPlan) -> None:
        if self._launched is not None:
            raise PlanError(f"step {plan.step}: step {self._launched.plan.step} was not sampled")
        if len(self._sampled) >= MAX_STEPS_IN_FLIGHT:
            raise PlanError(f"step {plan.step}: {len(self._sampled)} steps are not collected yet")
        self._audit.check(plan)
        for start in plan.starts:
            self._starts[start.slot] = start
            self._makers[start.slot] = TokenMaker(
                start.params, start.sample_index, start.prompt_len, self._vocab_size, self._eos
            )
        self._free_at = max(self._free_at, self._clock()) + self._pace.seconds(plan)
        self._launched = _Launched(plan, self._free_at)

    def sample(self, masks: Bitmasks) -> None:
        if self._launched is None:
            raise PlanError("sample without a launched step")
        plan = self._launched.plan
        stray = [slot for slot in masks if slot not in plan.sample_slots or not self._starts[slot].late_mask]
        if stray:
            raise PlanError(f"step {plan.step}: bitmasks for slots {stray}, which wait for none")
        tokens: list[tuple[int, ...]] = []
        logprobs: dict[int, tuple[TokenLogprobs, ...]] = {}
        for row, slot in enumerate(plan.sample_slots):
            position, maker = self._audit.length(slot), self._makers[slot]
            token = maker.token(position, masks.get(slot))
            self._audit.sampled(slot)
            tokens.append((token,))
            count = self._starts[slot].params.logprobs
            if count is not None:
                logprobs[row] = (maker.logprobs(token, count),)
        scores = {
            index: self._score(prefill, prefill.prompt_logprobs)
            for index, prefill in enumerate(plan.prefills)
            if prefill.prompt_logprobs is not None
        }
        pooled = {index: _pooled(prefill) for index, prefill in enumerate(plan.prefills) if prefill.pooling is not None}
        self._sampled.append(_Sampled(StepResult(tokens, logprobs, scores, pooled), self._launched.ready_at))
        self._launched = None

    def collect(self) -> StepResult:
        if not self._sampled:
            raise PlanError("collect without a sampled step")
        step = self._sampled.popleft()
        wait = step.ready_at - self._clock()
        if wait > 0:
            self._sleep(wait)
        return step.result

    def prepare(self) -> bool:
        return False

    def sleep(self) -> int:
        return 0

    def wake(self) -> int:
        return 0

    def close(self) -> None:
        self._makers.clear()
        self._starts.clear()

    def _score(self, prefill: Prefill, count: int) -> tuple[TokenLogprobs, ...]:
        maker = self._makers[prefill.slot]
        return tuple(maker.logprobs(target, count) for target in prefill.targets)


def _pooled(prefill: Prefill) -> list[float]:
    """Eight made-up numbers a token, alike for equal tokens: their sum, or the last token's."""
    tokens = prefill.token_ids if prefill.pooling == "mean" else prefill.token_ids[-1:]
    return [sum((token * factor % 97) / 97 for token in tokens) for factor in range(1, 9)]
