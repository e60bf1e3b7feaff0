"""A batch's order: longest outputs first where all fit at once, and the bound that tells whether they do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.null_model import model_directory
from tests.support.paged_executor import settings
from tests.support.sampling import params
from thranite.batch_order import BatchOrder, batch_order, may_end_early, most_tokens, schedule, suits
from thranite.bench.shapes import write_model_directory
from thranite.config import EngineConfig
from thranite.engine.batch import Batch
from thranite.engine.engine import Engine
from thranite.engine.null_executor import NullExecutor, NullPace
from thranite.engine.scheduler import ScheduledStep
from thranite.engine.step_cost import StepCost
from thranite.engine.whole_tiles import rows_beyond_tiles
from thranite.llm import LLM
from thranite.request import EngineRequest, Grammar, SequenceDelta
from thranite.sampling_params import SamplingParams

LIMITS = settings(num_blocks=1000, max_num_seqs=8, max_num_batched_tokens=64)
BLOCK = LIMITS.layout.block_size
COST = LIMITS.step_cost
WIDE = settings(num_blocks=100_000, max_num_seqs=256, max_num_batched_tokens=8192, max_model_len=40_000)


def batch(*lengths: tuple[int, int], n: int = 1) -> list[EngineRequest]:
    """Of prompt and output tokens."""
    return [
        EngineRequest(str(i), tuple(range(prompt)), params(max_tokens=output, n=n))
        for i, (prompt, output) in enumerate(lengths)
    ]


def names(order: BatchOrder) -> str:
    return "".join(request.request_id for request in order.requests)


def test_the_longest_come_first_and_equal_ones_stay() -> None:
    assert names(batch_order(batch((9, 5), (2, 80), (3, 5), (4, 200)), LIMITS)) == "3102"


def test_a_batch_that_cannot_run_at_once_stays_as_it_is() -> None:
    """Too many sequences, or too many tokens for the cache."""
    assert names(batch_order(batch(*[(2, i + 1) for i in range(9)]), LIMITS)) == "012345678"
    assert names(batch_order(batch((2, 1), (2, 9), n=5), LIMITS)) == "01"
    small = settings(num_blocks=2 + 2 * (30 // BLOCK + 1), max_num_seqs=8, max_num_batched_tokens=64)
    assert names(batch_order(batch((4, 5), (4, 20)), small)) == "10"
    assert names(batch_order(batch((4, 5), (4, 90)), small)) == "01"


@pytest.mark.parametrize(
    ("lengths", "tokens"),
    [
        ([(900, 100 + 40 * i) for i in range(20)], 256),  # of prompt and output tokens
        ([(600, 100 + 4 * i) for i in range(250)], 384),  # smaller ones would keep the last outputs waiting
        ([(300, 500)] * 20, 8192),  # equal outputs end together: whatever begins later ends later
        ([(1000, 1000)] * 19 + [(1000, 1)], 8192),  # a single short one saves next to nothing
        ([(20, 100 + 40 * i) for i in range(20)], 8192),  # more prompts fill a small step than its graph holds
    ],
)
def test_steps_are_small_where_that_evens_them_out(lengths: list[tuple[int, int]], tokens: int) -> None:
    assert batch_order(batch(*lengths), WIDE).step_tokens == tokens


def test_a_small_model_s_steps_stay_larger() -> None:
    """They take their time for launches: a further step with prompts costs more than evenness saves."""
    lengths = batch(*[(600, 100 + 4 * i) for i in range(250)])
    small = replace(WIDE, step_cost=StepCost(floor=1.0e-3, token=1.4e-6, prompts=4e-4))
    assert batch_order(lengths, small).step_tokens > 512 > batch_order(lengths, WIDE).step_tokens


@pytest.mark.parametrize(
    ("prompts", "tokens"),  # seconds of a step with prompts besides
    [(1e-4, 512), (2e-4, 768), (4e-4, 8192)],
)
def test_further_steps_with_prompts_are_weighed(prompts: float, tokens: int) -> None:
    small = replace(WIDE, step_cost=StepCost(floor=1.0e-3, token=1.4e-6, prompts=prompts))
    assert batch_order(batch(*[(600, 100 + 4 * i) for i in range(250)]), small).step_tokens == tokens


@pytest.mark.parametrize(("num_blocks", "tokens"), [(71_000, 384), (70_000, 512), (60_000, 640), (55_000, 1024)])
def test_what_begins_later_must_fit_too(num_blocks: int, tokens: int) -> None:
    """In smaller steps the last ones begin while the first ones hold more."""
    lengths = batch(*[(600, 100 + 4 * i) for i in range(250)])
    assert batch_order(lengths, replace(WIDE, num_blocks=num_blocks)).step_tokens == tokens


def test_steps_stay_large_where_not_all_fit() -> None:
    small = settings(num_blocks=40, max_num_seqs=64, max_num_batched_tokens=8192)
    assert batch_order(batch(*[(30, 1 + 40 * i) for i in range(20)]), small).step_tokens == 8192


@pytest.mark.parametrize(
    ("tokens", "sequences", "prompt", "suitable"),
    [
        (256, 204, 400, True),
        (256, 205, 400, False),  # no room for prompts while all decode
        (1024, 256, 32, True),
        (1024, 257, 400, False),  # no graph of so few tokens holds so many that decode
        (1024, 10, 31, False),  # nor so many prompts
        (2048, 1638, 20, True),
        (2048, 1639, 20, False),
    ],
)
def test_a_step_has_room_and_a_graph(tokens: int, sequences: int, prompt: int, suitable: bool) -> None:
    assert suits(tokens, sequences, prompt) == suitable


def steps_of_a_queue(requests: list[tuple[int, int, int]], tokens: int) -> list[tuple[int, int]]:
    """(Tokens that decode, tokens of prompts) of each step: prompts fill what is left in order; sequences decode from
    the step after their prompt's end on."""
    coming, running, steps = [list(request) for request in requests], list[int](), list[tuple[int, int]]()
    while coming or running:
        decodes, left, begun = len(running), tokens - len(running), list[int]()
        while coming and left > 0:
            taken = min(left, coming[0][0])
            coming[0][0] -= taken
            left -= taken
            if coming[0][0] == 0:
                _, output, width = coming.pop(0)
                begun += width * [output - 1]
        running = [more for more in [*(more - 1 for more in running), *begun] if more > 0]
        steps.append((decodes, tokens - decodes - left))
    return steps


REQUESTS = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 30), st.integers(1, 3)), min_size=1, max_size=20)


@given(REQUESTS, st.integers(60, 100))
def test_the_schedule_is_the_one_of_a_queue(requests: list[tuple[int, int, int]], tokens: int) -> None:
    found, steps = schedule(requests, tokens, COST), steps_of_a_queue(requests, tokens)
    assert (found.with_prompts, found.steps) == (sum(prompts > 0 for _, prompts in steps), len(steps))
    seconds = sum(COST.seconds(decodes + prompts) + COST.prompts * (prompts > 0) for decodes, prompts in steps)
    assert found.seconds == pytest.approx(seconds)


def steps_seen(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(Tokens that decode, tokens of prompts) of each step that the engine will plan."""
    seen: list[tuple[int, int]] = []
    plan = llm.engine.scheduler.plan

    def seeing() -> ScheduledStep | None:
        step = plan()
        if step is not None:
            seen.append((len(step.plan.decodes), step.prompt_tokens))
        return step

    monkeypatch.setattr(llm.engine.scheduler, "plan", seeing)
    return seen


@pytest.mark.parametrize("n", [1, 2])
def test_the_schedule_is_the_engine_s(n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = LLM(model_directory(tmp_path), device="null", skip_tokenizer_init=True, max_num_batched_tokens=100)
    seen = steps_seen(llm, monkeypatch)
    requests = [(30 + 7 * i % 50, 40 - i, n) for i in range(30)]
    outputs = [SamplingParams(n=n, max_tokens=output, ignore_eos=True) for _, output, _ in requests]
    llm.generate([[i] * prompt for i, (prompt, _, _) in enumerate(requests)], outputs)
    llm.close()
    assert seen == steps_of_a_queue(requests, 100)


@pytest.mark.parametrize(
    ("rows", "beyond"), [(256, 0), (257, 1), (336, 80), (337, 0), (384, 0), (1, 0), (129, 0), (1025, 1)]
)
def test_rows_beyond_whole_tiles(rows: int, beyond: int) -> None:
    assert rows_beyond_tiles(rows) == beyond


@pytest.mark.parametrize(
    ("outputs", "paused"),
    [
        ([400 - i for i in range(330)], True),
        ([90] * 330, False),  # nobody has time
        ([500] * 300 + [40] * 30, False),  # nor have all who would pause
        ([500] * 256 + [40] * 30, True),
    ],
)
def test_a_batch_s_steps_fill_tiles_and_are_no_more(
    outputs: list[int], paused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those with time pause; the batch ends with its longest all the same, and each has its tokens."""
    llm = LLM(model_directory(tmp_path), device="null", skip_tokenizer_init=True, max_num_seqs=512)
    seen = steps_seen(llm, monkeypatch)
    params = [SamplingParams(max_tokens=output, ignore_eos=True) for output in outputs]
    found = llm.generate([[1, 2, 3]] * len(outputs), params)
    llm.close()
    assert [len(output.outputs[0].token_ids) for output in found] == outputs
    alone = [decodes for decodes, prompts in seen if not prompts]
    assert len(alone) == max(outputs) - 1
    assert alone[0] == (256 if paused else len(outputs))
    assert not llm.engine.scheduler.whole_tiles


def test_siblings_pause_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = LLM(model_directory(tmp_path), device="null", skip_tokenizer_init=True, max_num_seqs=512)
    seen = steps_seen(llm, monkeypatch)
    params = [SamplingParams(n=3, max_tokens=output, ignore_eos=True) for output in range(200, 90, -1)]
    found = llm.generate([[1, 2, 3]] * len(params), params)
    llm.close()
    assert [len(sample.token_ids) for output in found for sample in output.outputs] == [
        one.max_tokens for one in params for _ in range(3)
    ]
    alone = [decodes for decodes, prompts in seen if not prompts]
    assert (alone[0], len(alone)) == (256, 199)


def test_a_token_or_a_grammar_may_end_a_request_early() -> None:
    """Where one may, nobody pauses: the first sequence might then end before those that do."""
    (request,) = batch((9, 5))
    assert not may_end_early(request)
    assert may_end_early(replace(request, params=params(eos_token_ids=(9,))))
    assert may_end_early(replace(request, params=params(stop_token_ids=(9,))))
    assert may_end_early(replace(request, grammar=Grammar("")))


def test_so_may_stop_strings() -> None:
    requests = batch((9, 5), (2, 80))
    assert batch_order(requests, LIMITS).lengths_known
    assert not batch_order(requests, LIMITS, stop_strings=True).lengths_known


@pytest.mark.parametrize(("tokens", "most"), [(257_792, 330), (269_504, 330), (500_000, 256)])
def test_pauses_preempt_nobody(tokens: int, most: int) -> None:
    """Those that pause keep their pages while the others grow: without room for all, they do not."""
    limits = replace(WIDE, num_blocks=tokens // BLOCK, max_num_seqs=512)
    engine = Engine(limits, NullExecutor(limits, NullPace()))
    queued = Batch(engine)
    queued.add(batch(*[(40, 900)] * 256, *[(40, 450)] * 74), lengths_known=True)
    sampled: list[int] = []
    while engine.has_work:
        sampled.append(len(engine.step()))
    queued.end()
    assert engine.scheduler.preemptions == 0
    assert sampled[9] == most


@given(st.data(), st.lists(st.tuples(*[st.integers(1, 30)] * 2, st.integers(1, 3)), min_size=1), st.integers(0, 9))
def test_no_step_holds_more_than_the_bound(
    data: st.DataObject, requests: list[tuple[int, int, int]], last_start: int
) -> None:
    """Whenever each begins; and a batch that begins at once reaches it."""
    ordered = sorted(requests, key=lambda request: -request[1])
    prompts, outputs, widths = np.array(ordered, np.int64).T
    starts = np.array([data.draw(st.integers(0, last_start)) for _ in requests])
    steps = np.arange(last_start + 31)[:, None]
    produced = steps - starts
    held = widths * np.where((produced >= 0) & (produced < outputs), prompts + produced, 0)
    most = int(held.sum(1).max())
    assert most <= most_tokens(prompts, outputs, widths, last_start)
    if not starts.any():
        assert most == most_tokens(prompts, outputs, widths, 0)


def test_results_stay_in_the_callers_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = LLM(model_directory(tmp_path), device="null", skip_tokenizer_init=True)
    added: list[tuple[int, int]] = []
    add = llm.engine.add

    def adding(request: EngineRequest, arrival: float) -> None:
        added.append((request.params.max_tokens, request.params.seed))
        add(request, arrival)

    monkeypatch.setattr(llm.engine, "add", adding)
    outputs = llm.generate([[1, 2], [3], [4]], [SamplingParams(max_tokens=k, ignore_eos=True) for k in (3, 40, 7)])
    llm.close()
    assert added == [(40, 1), (7, 2), (3, 0)], "seeds follow the caller's order"
    assert [len(output.outputs[0].token_ids) for output in outputs] == [3, 40, 7]
    assert [output.prompt_token_ids for output in outputs] == [[1, 2], [3], [4]]


def test_a_batch_may_hold_more_tokens_than_a_server_s_queue(tmp_path: Path) -> None:
    llm = LLM(model_directory(tmp_path), device="null", skip_tokenizer_init=True)
    prompt = [7] * (llm.info.max_model_len - 1)
    count = EngineConfig(model="served").max_waiting_tokens // len(prompt) + 1
    assert len(llm.generate([prompt] * count, SamplingParams(max_tokens=1))) == count
    llm.close()


def test_steps_are_small_for_the_batch_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = write_model_directory("llama-8b", tmp_path)
    llm = LLM(str(directory), device="null", skip_tokenizer_init=True, max_model_len=2048, max_num_batched_tokens=4096)
    scheduler, step = llm.engine.scheduler, llm.engine.step
    seen: list[int] = []

    def seeing() -> list[SequenceDelta]:
        seen.append(scheduler.step_tokens)
        return step()

    monkeypatch.setattr(llm.engine, "step", seeing)
    prompts, params = [[1] * 300] * 20, [SamplingParams(max_tokens=k, ignore_eos=True) for k in range(5, 105, 5)]
    llm.generate(prompts, params)
    assert (set(seen), scheduler.step_tokens) == ({256}, 4096)
    monkeypatch.setattr(llm.engine, "step", lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        llm.generate(prompts, params)
    assert (scheduler.step_tokens, llm.engine.has_work) == (4096, False)
    llm.close()
