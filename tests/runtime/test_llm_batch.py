"""A batch given to `LLM.generate`: what is done before the first step, and what is left of it when something fails."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.null_model import model_directory
from thranite import LLM, SamplingParams
from thranite.engine.plan import StepPlan
from thranite.errors import EngineDead, InvalidRequest
from thranite.request import EngineRequest

PROMPTS = [list(range(index, index + 40)) for index in range(30)]
PARAMS = SamplingParams(max_tokens=3, ignore_eos=True)


@pytest.fixture
def llm(tmp_path: Path) -> Iterator[LLM]:
    llm = LLM(model_directory(tmp_path), device="null", skip_tokenizer_init=True, max_num_batched_tokens=128)
    yield llm
    llm.close()


def test_the_first_step_is_launched_before_all_are_queued(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = llm.engine._executor.launch
    seen: list[tuple[int, bool]] = []

    def launching(plan: StepPlan) -> None:
        seen.append((llm.engine.stats().requests_received_total, gc.isenabled()))
        launch(plan)

    monkeypatch.setattr(llm.engine._executor, "launch", launching)
    outputs = llm.generate(PROMPTS, PARAMS)
    assert seen[0] == (4, False), "four have a part in a step of 128 tokens; nothing is collected"
    assert seen[1][1]
    assert seen[-1] == (len(PROMPTS), True)
    assert [output.prompt_token_ids for output in outputs] == PROMPTS
    assert [len(output.outputs[0].token_ids) for output in outputs] == [3] * len(PROMPTS)


@pytest.mark.parametrize("wrong", [[1, -1], [10**6], [2**40], []])
def test_nothing_is_begun_where_the_last_prompt_is_refused(llm: LLM, wrong: list[int]) -> None:
    with pytest.raises(InvalidRequest, match=r"^request 31 of 31: .*(not in the vocabulary|at least one token)"):
        llm.generate([*PROMPTS, wrong], PARAMS)
    stats = llm.engine.stats()
    assert (stats.requests_received_total, stats.steps_total) == (0, 0)
    assert gc.isenabled()


def test_of_several_the_one_that_is_refused_is_named(llm: LLM) -> None:
    wide = SamplingParams(max_tokens=3, n=llm.info.max_num_seqs + 1)
    with pytest.raises(InvalidRequest, match=r"^request 2 of 3: n is ") as refused:
        llm.generate(PROMPTS[:3], [PARAMS, wide, PARAMS])
    assert refused.value.param == "n"
    with pytest.raises(InvalidRequest, match=r"^request 3 of 3: token id -1 "):
        llm.embed([*PROMPTS[:2], [-1]])
    with pytest.raises(InvalidRequest, match=r"^token id -1 "):
        llm.generate([-1], PARAMS)
    assert llm.engine.stats().requests_received_total == 0


def test_a_prompt_cut_to_its_end_may_have_held_anything(llm: LLM) -> None:
    [output] = llm.generate([[-1, 10**6, 5, 6]], SamplingParams(max_tokens=1, truncate_prompt_tokens=2))
    assert output.prompt_token_ids == [5, 6]


def fail(llm: LLM, monkeypatch: pytest.MonkeyPatch, method: str, by: Callable[..., Any]) -> None:
    """A batch that the engine's method interrupts."""
    with monkeypatch.context() as patch:
        patch.setattr(llm.engine, method, by)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(PROMPTS, PARAMS)


def prove_nothing_is_left(llm: LLM) -> None:
    while llm.engine.has_work:
        assert llm.engine.step() == []
    llm.engine.check_integrity()
    stats = llm.engine.stats()
    assert (stats.requests_waiting, stats.requests_running) == (0, 0)


def interrupt_queueing(llm: LLM, monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    add, count = llm.engine.add, iter(range(1, 100))

    def interrupted(request: EngineRequest, arrival: float) -> None:
        if next(count) == nth:
            raise KeyboardInterrupt
        add(request, arrival)

    fail(llm, monkeypatch, "add", interrupted)


def test_an_interrupt_before_the_first_step_spoils_nothing(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_queueing(llm, monkeypatch, 1)
    prove_nothing_is_left(llm)
    assert len(llm.generate(PROMPTS, PARAMS)) == len(PROMPTS)


@pytest.mark.parametrize("nth", [2, 6, 9])
def test_an_interrupt_while_a_step_queues_requests_ends_the_engine(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    """Its plan is half-made: pages are indexed for reuse that nobody has written."""
    interrupt_queueing(llm, monkeypatch, nth)
    with pytest.raises(EngineDead, match="half-way by KeyboardInterrupt"):
        llm.generate(PROMPTS, PARAMS)


def test_prompts_may_be_iterators(llm: LLM) -> None:
    prompts: list[Any] = [iter([1, 2, 3]), map(int, "45")]
    assert [output.prompt_token_ids for output in llm.generate(prompts, PARAMS)] == [[1, 2, 3], [4, 5]]


def test_an_engine_that_forgets_a_request_is_found_out(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    step = llm.engine.step

    def forgetting() -> object:
        llm.engine.abort("1")
        return step()

    monkeypatch.setattr(llm.engine, "step", forgetting)
    with pytest.raises(RuntimeError, match="no end came of requests 1"):
        llm.generate(PROMPTS[:3], PARAMS)


@pytest.mark.parametrize("steps", [0, 2])
def test_a_failed_batch_leaves_no_request(llm: LLM, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    step, count = llm.engine.step, iter(range(100))

    def failing() -> object:
        if next(count) == steps:
            raise KeyboardInterrupt
        return step()

    fail(llm, monkeypatch, "step", failing)
    prove_nothing_is_left(llm)
    assert llm.engine.stats().requests_received_total < len(PROMPTS)
    assert gc.isenabled()
    assert len(llm.generate(PROMPTS, PARAMS)) == len(PROMPTS)
