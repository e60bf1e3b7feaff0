"""A batch given to `LLM.generate`: what is done before the first step, and what is left of it when something fails."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.null_model import model_directory
from thranite import LLM, SamplingParams
from thranite.engine.plan import StepPlan
from thranite.errors import InvalidRequest

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
    assert seen[0] == (5, False), "four have a part in a step of 128 tokens, one waits; nothing is collected"
    assert seen[1][1]
    assert seen[-1] == (len(PROMPTS), True)
    assert [output.prompt_token_ids for output in outputs] == PROMPTS
    assert [len(output.outputs[0].token_ids) for output in outputs] == [3] * len(PROMPTS)


@pytest.mark.parametrize("wrong", [[1, -1], [10**6], [2**40], []])
def test_nothing_is_begun_where_the_last_prompt_is_refused(llm: LLM, wrong: list[int]) -> None:
    with pytest.raises(InvalidRequest, match=r"not in the vocabulary|at least one token"):
        llm.generate([*PROMPTS, wrong], PARAMS)
    stats = llm.engine.stats()
    assert (stats.requests_received_total, stats.steps_total) == (0, 0)
    assert gc.isenabled()


def test_a_prompt_cut_to_its_end_may_have_held_anything(llm: LLM) -> None:
    [output] = llm.generate([[-1, 10**6, 5, 6]], SamplingParams(max_tokens=1, truncate_prompt_tokens=2))
    assert output.prompt_token_ids == [5, 6]


@pytest.mark.parametrize("steps", [0, 2])
def test_a_failed_batch_leaves_no_request(llm: LLM, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    step, count = llm.engine.step, iter(range(100))

    def failing() -> object:
        if next(count) == steps:
            raise KeyboardInterrupt
        return step()

    with monkeypatch.context() as patch:
        patch.setattr(llm.engine, "step", failing)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(PROMPTS, PARAMS)
    while llm.engine.has_work:
        assert llm.engine.step() == []
    llm.engine.check_integrity()
    assert llm.engine.stats().requests_received_total < len(PROMPTS)
    assert gc.isenabled()
    assert len(llm.generate(PROMPTS, PARAMS)) == len(PROMPTS)
