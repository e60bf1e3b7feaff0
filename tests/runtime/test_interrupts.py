"""Ctrl-C while an engine runs in the caller's process: kept until its step has ended, and never lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tests.support.null_model import model_directory
from thranite import LLM, SamplingParams
from thranite.engine.plan import StepPlan, StepResult
from thranite.errors import EngineDead
from thranite.interrupts import BetweenSteps

PROMPTS = [list(range(length)) for length in (40, 33, 7, 21)]
PARAMS = SamplingParams(max_tokens=6, ignore_eos=True, seed=3)  # a token tells its position


def interrupt() -> None:
    """Python calls the handler before this returns."""
    signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    """The default one, which a shell's background replaces; and it must be there afterwards."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    after = signal.signal(signal.SIGINT, before)
    assert after is signal.default_int_handler


@pytest.fixture(params=[True, False], ids=["overlap", "no-overlap"])
def llm(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LLM]:
    llm = LLM(
        model_directory(tmp_path),
        device="null",
        skip_tokenizer_init=True,
        max_num_batched_tokens=128,
        overlap=request.param,
    )
    yield llm
    llm.close()


def tokens(llm: LLM) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in llm.generate(PROMPTS, PARAMS)]


def at_call(monkeypatch: pytest.MonkeyPatch, llm: LLM, method: str, call: int, do: Callable[[], None]) -> None:
    """`do` it inside the device's method, at its nth call; before its work where that waits for results."""
    inner, count = getattr(llm.engine._executor, method), iter(range(1000))

    def patched(*args: StepPlan) -> StepResult | None:
        if method == "collect" and next(count) == call:
            do()
        result: StepResult | None = inner(*args)
        if method != "collect" and next(count) == call:
            do()
        return result

    monkeypatch.setattr(llm.engine._executor, method, patched)


@pytest.mark.parametrize("method", ["launch", "sample", "collect"])
@pytest.mark.parametrize("call", [0, 1, 3, 5])
def test_an_interrupt_waits_for_the_step_s_end(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, method: str, call: int
) -> None:
    """What comes after it is as if it had never been: the right tokens, of the right requests."""
    expected = tokens(llm)
    with monkeypatch.context() as patch:
        at_call(patch, llm, method, call, interrupt)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(PROMPTS, PARAMS)
    stats = llm.engine.stats()
    assert (stats.requests_waiting, stats.requests_running) == (0, 0)
    assert tokens(llm) == expected
    llm.engine.check_integrity()


def twice() -> None:
    interrupt()
    interrupt()
    raise AssertionError("the second interrupt was not heard")


@pytest.mark.parametrize("method", ["launch", "sample", "collect"])
@pytest.mark.parametrize("call", [0, 3])
def test_a_second_one_is_heard_at_once_and_the_engine_says_that_it_ended(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, method: str, call: int
) -> None:
    with monkeypatch.context() as patch:
        at_call(patch, llm, method, call, twice)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(PROMPTS, PARAMS)
    assert_ended(llm)


def test_so_does_one_whose_plan_was_left_half_made(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first prompt's pages were to be reused by then, and were never written."""
    grow, count = llm.engine.scheduler.kv.grow, iter(range(100))

    def growing(*given: Any) -> None:
        if next(count) == 1:
            twice()
        grow(*given)

    with monkeypatch.context() as patch:
        patch.setattr(llm.engine.scheduler.kv, "grow", growing)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(PROMPTS, PARAMS)
    assert_ended(llm)


def assert_ended(llm: LLM) -> None:
    """What is asked of it afterwards says why, and what to do."""
    calls: list[Callable[[], object]] = [
        lambda: llm.generate(PROMPTS, PARAMS),
        lambda: llm.embed(PROMPTS),
        lambda: llm.sleep(),
    ]
    for call in calls:
        with pytest.raises(EngineDead, match="make another; a step was left half-way by KeyboardInterrupt"):
            call()


@pytest.mark.parametrize("call", [0, 3])
def test_sleep_comes_after_the_step_that_an_interrupt_left_in_flight(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    expected = tokens(llm)
    with monkeypatch.context() as patch:
        at_call(patch, llm, "launch", call, interrupt)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(PROMPTS, PARAMS)
    llm.sleep()
    llm.wake_up()
    assert tokens(llm) == expected


def test_an_interrupt_waits_for_the_end_of_falling_asleep(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        at_call(patch, llm, "sleep", 0, interrupt)
        with pytest.raises(KeyboardInterrupt):
            llm.sleep()
        woken: list[int] = []

        def waking() -> int:
            woken.append(0)
            return 0

        patch.setattr(llm.engine._executor, "wake", waking)
        llm.wake_up()
        assert woken, "it slept"
    assert len(tokens(llm)) == len(PROMPTS)


def test_what_is_kept_is_delivered_where_asked_or_at_the_end() -> None:
    reached: list[str] = []

    def asked() -> None:
        with BetweenSteps() as interrupts:
            interrupts()
            interrupt()
            reached.append("within")
            interrupts()
            reached.append("beyond")

    def not_asked() -> None:
        with BetweenSteps():
            interrupt()
            reached.append("to the end")
        reached.append("beyond")

    with pytest.raises(KeyboardInterrupt):
        asked()
    with pytest.raises(KeyboardInterrupt):
        not_asked()
    assert reached == ["within", "to the end"]


def test_an_error_loses_no_interrupt() -> None:
    def fails() -> None:
        with BetweenSteps():
            interrupt()
            raise ValueError("first")

    with pytest.raises(KeyboardInterrupt) as raised:
        fails()
    assert isinstance(raised.value.__context__, ValueError)


def test_a_handler_of_the_caller_s_own_is_called_where_asked() -> None:
    seen: list[int] = []

    def own(number: int, frame: FrameType | None) -> None:
        seen.append(number)

    signal.signal(signal.SIGINT, own)
    try:
        with BetweenSteps() as interrupts:
            interrupt()
            assert seen == []
            interrupts()
            assert seen == [signal.SIGINT]
            interrupts()
            interrupt()
            interrupt()
            assert len(seen) == 3, "the second one is heard at once, after the first"
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert seen == [signal.SIGINT] * 3


def test_a_handler_set_meanwhile_stays() -> None:
    def other(number: int, frame: FrameType | None) -> None:
        raise AssertionError("nobody interrupts")

    try:
        with BetweenSteps():
            signal.signal(signal.SIGINT, other)
        assert signal.getsignal(signal.SIGINT) is other
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_one_heard_while_the_handler_is_restored_leaves_it_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Setting a handler hears what is pending first, and then has set nothing."""
    restore = signal.signal

    def pending(number: int, handler: Any) -> Any:
        if handler is signal.default_int_handler:
            monkeypatch.setattr(signal, "signal", restore)
            interrupt()
        return restore(number, handler)

    def interrupted() -> None:
        with BetweenSteps():
            interrupt()
            monkeypatch.setattr(signal, "signal", pending)

    with pytest.raises(KeyboardInterrupt):
        interrupted()


@pytest.mark.parametrize("method", ["launch", "collect"])
def test_embeddings_wait_too(llm: LLM, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    expected = llm.embed(PROMPTS)
    with monkeypatch.context() as patch:
        at_call(patch, llm, method, 0, interrupt)
        with pytest.raises(KeyboardInterrupt):
            llm.embed(PROMPTS)
    assert llm.embed(PROMPTS) == expected


def test_ignored_interrupts_stay_ignored_and_other_threads_are_left_alone(llm: LLM) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with BetweenSteps() as interrupts:
            interrupt()
            interrupts()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    found: list[list[list[int]]] = []
    thread = threading.Thread(target=lambda: found.append(tokens(llm)))
    thread.start()
    thread.join()
    assert found == [tokens(llm)]
