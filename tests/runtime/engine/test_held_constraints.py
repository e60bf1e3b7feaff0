"""A constraint that is not ready holds its own request's last prompt token back, and nobody else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from tests.support.paged_executor import PagedExecutor, settings
from thranite.engine.engine import Engine
from thranite.request import EngineRequest, FinishReason, Grammar, SequenceDelta
from thranite.sampling_params import TokenParams


@dataclass
class Slow:
    """Allows everything, once it is ready."""

    done: threading.Event = field(default_factory=threading.Event)
    complete: bool = False
    failure: str | None = None

    @property
    def ready(self) -> bool:
        return self.done.is_set()

    def wait(self, seconds: float) -> None:
        self.done.wait(seconds)

    def accept(self, token: int) -> None:
        assert self.ready

    def bitmask(self) -> bytes | None:
        assert self.ready, "the step loop would wait"
        return None


class Maker:
    def __init__(self) -> None:
        self.made: list[Slow] = []

    def constraint(self, grammar: Grammar, params: TokenParams) -> Slow:
        self.made.append(Slow())
        return self.made[-1]

    def load(self) -> None:
        return


def request(name: str, prompt: int, grammar: bool = False, max_tokens: int = 6, n: int = 1) -> EngineRequest:
    wanted = Grammar("g") if grammar else None
    return EngineRequest(name, tuple(range(1, prompt + 1)), TokenParams(max_tokens, 1, n=n), grammar=wanted)


class Driver:
    def __init__(self, overlap: bool = False) -> None:
        self.maker = Maker()
        chosen = settings(grammars=self.maker, overlap=overlap)
        self.engine = Engine(chosen, PagedExecutor(chosen))
        self.deltas: list[SequenceDelta] = []

    def step_until(self, over: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not over():
            assert time.monotonic() < deadline
            self.deltas += self.engine.step()

    def tokens(self, name: str) -> int:
        return sum(len(delta.token_ids) for delta in self.deltas if delta.request_id == name)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("prompt", [1, 5, 40])
@pytest.mark.parametrize("samples", [1, 3])
def test_others_go_on_while_one_is_held(overlap: bool, prompt: int, samples: int) -> None:
    driver = Driver(overlap=overlap)
    driver.engine.add(request("held", prompt, grammar=True, n=samples))
    driver.engine.add(request("other", 9, max_tokens=30))
    driver.step_until(lambda: driver.tokens("other") == 30)
    assert driver.tokens("held") == 0
    [held] = [seq for seq in driver.engine.scheduler.running if seq.request_id == "held"]
    assert held.computed == prompt - 1  # its prompt was computed meanwhile
    driver.engine.add(request("third", 3))
    driver.step_until(lambda: driver.tokens("third") == 6)
    for constraint in driver.maker.made:
        assert driver.tokens("held") == 0  # one of several is not enough
        constraint.done.set()
    driver.step_until(lambda: not driver.engine.has_work)
    assert driver.tokens("held") == 6 * samples
    driver.engine.check_integrity()


def test_alone_it_is_waited_for_and_can_be_aborted_or_expire() -> None:
    driver = Driver()
    driver.engine.add(request("held", 8, grammar=True))
    used = time.thread_time()
    until = time.monotonic() + 0.5
    driver.step_until(lambda: time.monotonic() > until)
    assert time.thread_time() - used < 0.25
    assert driver.deltas == []
    assert driver.engine.has_work
    driver.engine.abort("held")
    assert not driver.engine.has_work
    late = EngineRequest("late", (1, 2), TokenParams(6, 1), grammar=Grammar("g"), timeout_seconds=0.05)
    driver.engine.add(late)
    driver.step_until(lambda: not driver.engine.has_work)
    assert [delta.finish_reason for delta in driver.deltas] == [FinishReason.TIMEOUT]
    driver.engine.check_integrity()


def test_it_starts_as_soon_as_it_is_ready() -> None:
    driver = Driver()
    driver.engine.add(request("held", 8, grammar=True))
    threading.Timer(0.2, lambda: driver.maker.made[0].done.set()).start()
    driver.step_until(lambda: not driver.engine.has_work)
    assert driver.tokens("held") == 6
