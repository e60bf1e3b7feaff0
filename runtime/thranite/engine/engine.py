"""The step loop: plan, launch, sample, collect, and tell what it brought.

With overlap, step N + 1 is planned and launched before the tokens of step N are read: a sequence that turns out to have
ended at N computes one token too many, whose result is dropped. What a device must know of order stands in `plan.py`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence as Rows
from functools import partial

from thranite.engine.admission import Amount, DrainRate, check_room
from thranite.engine.concurrency import ConcurrencyLimit
from thranite.engine.deadlines import Deadlines
from thranite.engine.measurements import Measurements
from thranite.engine.plan import Executor
from thranite.engine.prompt_pooling import add_pooled, take_embedding
from thranite.engine.prompt_scores import add_prompt_logprobs, take_prompt_logprobs
from thranite.engine.prompt_share import PromptShare
from thranite.engine.request_check import check_request
from thranite.engine.scheduler import ScheduledStep, Scheduler
from thranite.engine.sequence import RequestState, Sequence, State
from thranite.engine.settings import EngineSettings
from thranite.engine.stats import EngineStats
from thranite.engine.step_guard import StepGuard
from thranite.engine.step_pace import StepPace
from thranite.engine.step_time import StepLoad
from thranite.engine.verdict import verdict
from thranite.errors import DoesNotFit, InvalidRequest, Rejected
from thranite.request import EngineRequest, FinishReason, SequenceDelta, TokenLogprobs

# A named tuple's own constructor is a function of Python, which takes twice as long.
_new_delta = partial(tuple.__new__, SequenceDelta)
HELD_SECONDS = 0.005  # requests may come, or go, while one that is alone waits for its grammar


class Engine:
    """One model's queue, scheduler and device. Not thread-safe: one thread owns it."""

    def __init__(
        self, settings: EngineSettings, executor: Executor, clock: Callable[[], float] = time.monotonic
    ) -> None:
        needed = settings.layout.blocks_for(settings.max_model_len, settings.max_num_batched_tokens)
        if needed > settings.num_blocks - 1:
            raise DoesNotFit(
                f"one sequence of {settings.max_model_len} tokens needs {needed} KV blocks; "
                f"there are {settings.num_blocks - 1}",
                "lower --max-model-len or --max-num-batched-tokens, or give the KV cache more memory",
            )
        self.settings = settings
        self.scheduler = Scheduler(settings)
        self._executor = executor
        self._block_size = settings.layout.block_size
        self._clock = clock
        self._requests: dict[str, RequestState] = {}
        self._deadlines = Deadlines(self._requests)
        self._draining = False
        self._sleepy = False  # new requests are refused: it sleeps, or will
        self._asleep = False
        self._in_flight: ScheduledStep | None = None
        self._guard = StepGuard()
        self._counters: Counter[str] = Counter()
        self._finished: Counter[str] = Counter({reason.value: 0 for reason in FinishReason})
        self._rejected: Counter[str] = Counter({"invalid": 0, "queue_full": 0, "draining": 0, "asleep": 0})
        self._generated = 0
        self._host_seconds = 0.0
        self._measurements = Measurements()
        self._pace = StepPace()
        self._share = PromptShare(settings.prompt_time_ratio) if settings.prompt_time_ratio > 0 else None
        self.scheduler.prompt_share = self._share
        self._drain_rate = DrainRate()
        target = settings.target_inter_token_seconds
        self._concurrency = None if target is None else ConcurrencyLimit(target, settings.max_num_seqs)
        if self._concurrency is not None:
            self.scheduler.max_running = self._concurrency.limit

    # --- requests

    def add(self, request: EngineRequest, arrival: float | None = None) -> None:
        """Accept a request. Raises InvalidRequest if it can never run, Rejected if it cannot be queued now.

        `arrival`: when it was sent to this engine, of the engine's clock, for what is measured; None: now.
        """
        self._counters["received"] += 1
        try:
            self.check(request)
        except InvalidRequest:
            self._rejected["invalid"] += 1
            raise
        except Rejected as error:
            self._rejected[error.reason] += 1
            raise
        parent = self.scheduler.add(request, self._clock(), arrival)
        self._requests[request.request_id] = parent
        self._deadlines.add(parent)
        self._counters["prompt_tokens"] += len(request.prompt_token_ids)

    def set_draining(self, draining: bool) -> None:
        """Refuse new requests, or take them again. Open ones go on."""
        self._draining = draining

    def set_sleepy(self, sleepy: bool) -> None:
        """Refuse new requests for the sake of sleep, or take them again. Open ones go on."""
        self._sleepy = sleepy

    def check(self, request: EngineRequest) -> None:
        """Raise what `add` would raise now."""
        self._guard.check()
        if request.request_id in self._requests:
            raise InvalidRequest(f"request id {request.request_id!r} is already in use", "request_id")
        check_request(request, self.settings)
        if self._draining:
            raise Rejected("the server is draining: it takes no new requests", "draining")
        if self._sleepy:
            raise Rejected("the model is asleep", "asleep")
        self._observe_queue(self._clock())
        limits, queue, length = self.settings.queue_limits, self.scheduler.queue, len(request.prompt_token_ids)
        check_room(limits, Amount(len(queue), queue.tokens), length, request.priority, self._drain_rate)

    def _observe_queue(self, now: float) -> None:
        queue = self.scheduler.queue
        self._drain_rate.observe(Amount(queue.left_requests, queue.left_tokens), now)

    def abort(self, request_id: str) -> None:
        """End a request without a further delta. Unknown ids are ignored: it may have just finished.

        So are all where a step was left half-way: what was left holds together no more.
        """
        parent = self._requests.get(request_id)
        if parent is not None and not self._guard.inside:
            self._end(parent, FinishReason.ABORT)

    def stop(self, request_id: str, index: int) -> None:
        """End one sequence whose text is complete (a stop string), without a further delta.

        A sequence without output cannot have met a stop string and is left alone.
        """
        parent = self._requests.get(request_id)
        if parent is None or not 0 <= index < len(parent.sequences):
            return
        seq = parent.sequences[index]
        if seq.state is not State.FINISHED and len(seq.tokens) > seq.prompt_len:
            self._finish(seq, FinishReason.STOP)

    def _end(self, parent: RequestState, reason: FinishReason) -> list[Sequence]:
        ended = [seq for seq in parent.sequences if seq.state is not State.FINISHED]
        for seq in ended:
            self._finish(seq, reason)
        return ended

    def _finish(self, seq: Sequence, reason: FinishReason) -> None:
        self.scheduler.finish(seq)
        parent = seq.parent
        parent.open -= 1
        if parent.open == 0:
            request_id = parent.request.request_id
            del self._requests[request_id]
            self._finished[reason.value] += 1
            self._measurements.finished(parent, self._clock())
            parent.sequences.clear()  # they know each other: what ended must not wait for a collection of garbage

    # --- steps

    @property
    def now(self) -> float:
        """The engine's clock, seconds."""
        return self._clock()

    @property
    def has_work(self) -> bool:
        return self._in_flight is not None or self.scheduler.has_work

    @property
    def plan_at(self) -> float:
        """Until then `step` need not be called: requests that come before it join the step that it plans."""
        step = self._in_flight
        if step is None or not self.scheduler.takes_more:
            return 0.0
        return self._pace.plan_at(step.prompt_tokens, step.launched_at)

    def step(self) -> list[SequenceDelta]:
        """One iteration; waits for the device at most one step. Deltas of one call belong to one step.

        Once an exception has left it, whichever that was, it raises EngineDead with the cause, as `add` and `sleep` do.
        """
        with self._guard:
            return self._step()

    def _step(self) -> list[SequenceDelta]:
        started = self._clock()
        deltas = self._expire(started)
        previous, scheduled = self._in_flight, self.scheduler.plan()
        if scheduled is None and previous is None and self.scheduler.has_work:
            if not self.scheduler.wait_for_held(HELD_SECONDS):
                raise RuntimeError("the scheduler has work, nothing is in flight, and it plans nothing")
            return deltas
        waited = 0.0
        if scheduled is not None:
            self._counters["steps"] += 1
            self._measurements.planned(scheduled.plan.num_tokens, scheduled.prefills, started)
            self._executor.launch(scheduled.plan)
            if not scheduled.late:
                self._executor.sample({})
            scheduled.launched_at = self._clock()
            self._pace.launched(scheduled.prompt_tokens, scheduled.launched_at - started)
        if previous is not None:
            waited += self._collect(previous, deltas)
        if scheduled is not None and scheduled.late:
            self._executor.sample(self._masks(scheduled))
        if scheduled is not None and not self.settings.overlap:
            waited += self._collect(scheduled, deltas)
            scheduled = None
        self._in_flight = scheduled
        self._host_seconds += self._clock() - started - waited
        return deltas

    def _masks(self, scheduled: ScheduledStep) -> dict[int, bytes]:
        masks = {}
        for slot, seq in zip(scheduled.plan.sample_slots, scheduled.samples, strict=True):
            if seq.constraint is not None and seq.state is State.RUNNING:
                mask = seq.constraint.bitmask()
                if mask is not None:
                    masks[slot] = mask
        return masks

    def _collect(self, scheduled: ScheduledStep, deltas: list[SequenceDelta]) -> float:
        """Turn a step's result into deltas. Returns the seconds spent waiting for the device."""
        before = self._clock()
        result = self._executor.collect()
        now = self._clock()
        took = self._pace.read(scheduled.prompt_tokens, scheduled.launched_at, now, now - before)
        if took is not None and self._share is not None:
            self._share.observe(scheduled.prompt_tokens, len(scheduled.plan.decodes), took)
        add_prompt_logprobs(scheduled, result)
        add_pooled(scheduled, result)
        since_all: list[float] = []
        tokens, logprobs, finished = result.tokens, result.logprobs, State.FINISHED
        for row, seq in enumerate(scheduled.samples):
            seq.pending -= 1
            if seq.state is not finished:
                since, seq.token_at = seq.token_at, now
                if since is None:
                    self._measurements.first_token(seq, now)
                else:
                    since_all.append(since)
                deltas.append(self._advance(seq, tokens[row], logprobs.get(row)))
        rows_since = Counter(since_all)
        self._measurements.tokens(rows_since, now)
        if self._concurrency is not None and rows_since:
            since = max(rows_since, key=rows_since.__getitem__)
            self._concurrency.observe(now - since, len(scheduled.samples), self.scheduler.limited)
            self.scheduler.max_running = self._concurrency.limit
        self._observe_queue(now)
        return now - before

    def _advance(self, seq: Sequence, tokens: tuple[int, ...], logprobs: Rows[TokenLogprobs] | None) -> SequenceDelta:
        """Append a row's tokens until one ends the sequence. Like its caller's loop, it runs once a row and step."""
        reason: FinishReason | None = None
        stop_id: int | None = None
        error: str | None = None
        known, before = seq.tokens, len(seq.tokens)
        for token in tokens:
            known.append(token)
            if seq.constraint is None and token not in seq.endings and len(known) < seq.end:
                continue
            reason, stop_id, error = verdict(seq, token)
            if reason is not None:
                count = len(known) - before - (error is not None)
                if count < len(tokens):
                    tokens, logprobs = tokens[:count], None if logprobs is None else logprobs[:count]
                break
        self._generated += len(tokens)
        if seq.computed // self._block_size > seq.table.registered:
            self.scheduler.commit(seq)
        prompt_logprobs = cached_tokens = embedding = None
        if seq.parent.cached_tokens is not None and seq.index == 0:
            prompt_logprobs, embedding = take_prompt_logprobs(seq), take_embedding(seq)
            cached_tokens = self._take_cached_tokens(seq)
        if reason is not None:
            self._finish(seq, reason)
        return _new_delta(
            (
                seq.request_id,
                seq.index,
                tokens,
                reason,
                stop_id,
                logprobs,
                prompt_logprobs,
                cached_tokens,
                error,
                embedding,
            )
        )

    def _take_cached_tokens(self, seq: Sequence) -> int | None:
        """The request's prefix hit, once, with the first delta of sample 0."""
        cached, seq.parent.cached_tokens = seq.parent.cached_tokens, None
        self._counters["cached_prompt_tokens"] += cached or 0
        return cached

    def _expire(self, now: float) -> list[SequenceDelta]:
        """End requests past their deadline, in whatever state."""
        deltas = []
        for parent in self._deadlines.due(now):
            where = "while running" if parent.running else "while waiting"
            error = f"the request's timeout of {parent.request.timeout_seconds} s passed {where}"
            for seq in self._end(parent, FinishReason.TIMEOUT):
                deltas.append(SequenceDelta(seq.request_id, seq.index, (), FinishReason.TIMEOUT, error=error))
        return deltas

    # --- figures

    def load(self, most: int) -> StepLoad:
        """What the next step has before it, with at most so many tokens of prompts. Cheaper than `stats`."""
        running, kv = self.scheduler.running, self.scheduler.kv
        begun = sum(seq.prompt_len - seq.computed for seq in running if seq.computed < seq.prompt_len)
        tokens = len(running) + min(begun + self.scheduler.queue.tokens, most)
        return StepLoad(tokens, kv.pool.num_used * kv.block_size)

    def stats(self) -> EngineStats:
        """A snapshot for metrics, of this moment."""
        pool, now = self.scheduler.kv.pool, self._clock()
        waiting = [parent for parent in self._requests.values() if parent.waiting]
        blocks = self.settings.num_blocks - 1
        return EngineStats(
            requests_waiting=len(waiting),
            requests_running=len(self._requests) - len(waiting),
            concurrency_limit=self.scheduler.max_running,
            sleeping=self._sleepy,
            kv_cache_usage_ratio=pool.num_used / blocks,
            waiting_tokens=sum(parent.uncomputed for parent in self._requests.values()),
            oldest_waiting_seconds=max((now - parent.arrival for parent in waiting), default=0.0),
            kv_blocks=blocks,
            kv_blocks_used=pool.num_used,
            block_size=self.settings.layout.block_size,
            requests_received_total=self._counters["received"],
            requests_finished_total=dict(self._finished),
            requests_rejected_total=dict(self._rejected),
            preemptions_total=self.scheduler.preemptions,
            prompt_tokens_total=self._counters["prompt_tokens"],
            cached_prompt_tokens_total=self._counters["cached_prompt_tokens"],
            generation_tokens_total=self._generated,
            prefix_cache_queries_total=self.scheduler.prefix_queries,
            prefix_cache_hits_total=self.scheduler.prefix_hits,
            steps_total=self._counters["steps"],
            host_seconds_total=self._host_seconds,
            histograms=self._measurements.snapshot(),
        )

    def check_integrity(self) -> None:
        """Prove ownership of every page and slot. Raises RuntimeError. Cheap enough for every idle moment."""
        self.scheduler.check_integrity()
        if not self._requests and self.scheduler.kv.pool.num_used:
            raise RuntimeError(f"no request is open and {self.scheduler.kv.pool.num_used} pages are held")

    def prepare(self) -> bool:
        """While nothing is to be done: one thing that makes later steps faster. False: nothing is left to prepare."""
        if self.has_work:
            raise RuntimeError("asked to prepare while there is work")
        return not self._asleep and self._executor.prepare()

    def sleep(self) -> int:
        """Give the device's memory back, and forget cached prefixes. No request is open. Returns the bytes; 0 if it
        sleeps already."""
        if self._asleep:
            return 0
        self._guard.check()
        if not self._requests and self._in_flight is not None:
            self.step()  # whose requests were aborted
        if self._requests or self.has_work:
            raise RuntimeError(f"asked to sleep with {len(self._requests)} open requests")
        self.set_sleepy(True)
        self.scheduler.kv.forget_prefixes()
        with self._guard:
            freed = self._executor.sleep()
        self._asleep = True
        return freed

    def wake(self) -> int:
        """Serve again. Returns bytes that the device lacks for it: 0, or it sleeps on."""
        self._guard.check()
        missing = self._executor.wake() if self._asleep else 0
        if not missing:
            self._asleep = False
            self.set_sleepy(False)
        return missing

    def close(self) -> None:
        """Free the device. Open requests are the caller's to answer."""
        self._guard.forget_cause()
        self._executor.close()
