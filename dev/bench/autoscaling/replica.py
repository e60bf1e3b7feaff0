"""One replica, step by step: the engine's scheduler in small.

Decode first, whole prompts join as slots and KV cache allow, first come first served; a sequence that cannot grow sends
the youngest back to the queue to be computed again. Steps in which nothing but decoding happens are taken at a stride.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from autoscaling.service import Service


@dataclass(slots=True)
class Request:
    """`first_token` is the moment of the first token, infinity until there is one."""

    arrival: float
    prompt: int
    output: int
    first_token: float = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrape:
    """What a runtime exports: the contract's gauges and counters, without their prefix."""

    requests_waiting: int
    requests_running: int
    kv_cache_usage_ratio: float
    waiting_tokens: int
    oldest_waiting_seconds: float
    draining: bool
    requests_received_total: int
    requests_finished_total: int
    requests_rejected_total: int


class Replica:
    """`_time`: when the step under way ends. `_age`: decode steps done; a running sequence ends at its own age."""

    def __init__(self, service: Service, ready_at: float) -> None:
        self._service, self._time = service, ready_at
        self._waiting: deque[tuple[Request, int]] = deque()  # with the output tokens still to come
        self._running: list[tuple[int, int, Request]] = []  # a heap: last age, number, request
        self._age = self._used = self._number = 0
        self._received = self._finished = self._rejected = 0
        self.draining = False

    @property
    def load(self) -> int:
        return len(self._waiting) + len(self._running)

    def offer(self, request: Request) -> None:
        """A request arrives now; refused if too many wait."""
        self.advance(request.arrival)
        self._received += 1
        if len(self._waiting) >= self._service.max_waiting:
            self._rejected += 1
            return
        if not self._waiting and not self._running:
            self._time = max(self._time, request.arrival)
        self._waiting.append((request, request.output))

    def advance(self, until: float) -> None:
        """Take every step that begins before `until`."""
        while self._time < until and (self._waiting or self._running):
            prompts = self._admit()
            if prompts:
                self._step(prompts)
            else:
                self._stride(until)

    def _admit(self) -> list[tuple[Request, int]]:
        admitted: list[tuple[Request, int]] = []
        free = self._service.slots - len(self._running)
        room = self._service.kv_tokens - self._used - len(self._running)
        while self._waiting and free > 0:
            request, output = self._waiting[0]
            needed = request.prompt + request.output - output + 1
            if needed > room:
                break
            admitted.append(self._waiting.popleft())
            free, room = free - 1, room - needed
        return admitted

    def _step(self, prompts: list[tuple[Request, int]]) -> None:
        decoding = len(self._running)
        tokens = decoding + sum(request.prompt + request.output - output for request, output in prompts)
        self._time += self._service.step_seconds(tokens)
        self._age += 1
        self._used += tokens
        for request, output in prompts:
            request.first_token = min(request.first_token, self._time)
            self._number += 1
            heappush(self._running, (self._age + output - 1, self._number, request))
        self._finish()

    def _stride(self, until: float) -> None:
        """Decode until a sequence ends, the cache is full or `until` is reached, whichever is first."""
        rows = len(self._running)
        if self._used + rows > self._service.kv_tokens:
            self._preempt()
            return
        seconds = self._service.step_seconds(rows)
        steps = min(
            self._running[0][0] - self._age,
            (self._service.kv_tokens - self._used) // rows,
            int((until - self._time) / seconds) + 1,
        )
        self._time += steps * seconds
        self._age += steps
        self._used += steps * rows
        self._finish()

    def _finish(self) -> None:
        while self._running and self._running[0][0] <= self._age:
            _, _, request = heappop(self._running)
            self._used -= request.prompt + request.output - 1
            self._finished += 1

    def _preempt(self) -> None:
        youngest = max(self._running, key=lambda item: item[1])
        self._running.remove(youngest)
        heapify(self._running)
        end, _, request = youngest
        left = end - self._age
        self._used -= request.prompt + request.output - left - 1
        self._waiting.appendleft((request, left))

    def scrape(self, now: float) -> Scrape:
        self.advance(now)
        waiting = [request for request, _ in self._waiting]
        return Scrape(
            requests_waiting=len(waiting),
            requests_running=len(self._running),
            kv_cache_usage_ratio=self._used / self._service.kv_tokens,
            waiting_tokens=sum(request.prompt for request in waiting),
            oldest_waiting_seconds=max((now - request.arrival for request in waiting), default=0.0),
            draining=self.draining,
            requests_received_total=self._received,
            requests_finished_total=self._finished,
            requests_rejected_total=self._rejected,
        )
