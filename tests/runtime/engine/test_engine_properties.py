"""Random workloads on a device that reads every token through the pages: the tokens tell whether a page was wrong."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.support.paged_executor import VOCAB, PagedExecutor, reference, settings
from thranite.engine.engine import Engine
from thranite.request import EngineRequest, FinishReason, SequenceDelta
from thranite.sampling_params import TokenParams

WINDOWS: list[list[int | None]] = [[None], [5], [None, 7], [None, 3, 3], [6, 11]]


@st.composite
def engine_settings(draw: st.DrawFn) -> Any:
    size = draw(st.sampled_from([1, 2, 4, 8, 16]))
    windows = draw(st.sampled_from(WINDOWS))
    budget = draw(st.sampled_from([1, 2, 3, 7, 16, 64]))
    length = draw(st.integers(24, 48))
    base = settings(size, 10_000, windows, max_model_len=length, max_num_batched_tokens=budget)
    least = base.layout.blocks_for(length, budget) + 1
    return settings(
        size,
        least + draw(st.integers(0, 40)),
        windows,
        max_model_len=length,
        max_num_batched_tokens=budget,
        max_num_seqs=draw(st.integers(3, 9)),
        enable_prefix_caching=draw(st.booleans()),
        overlap=draw(st.booleans()),
    )


@st.composite
def requests(draw: st.DrawFn, longest: int) -> list[EngineRequest]:
    shared = draw(st.lists(st.integers(0, 2), min_size=0, max_size=longest - 8))
    result = []
    for index in range(draw(st.integers(1, 10))):
        own = draw(st.lists(st.integers(0, 2), min_size=1, max_size=6))
        prompt = (*shared[: draw(st.integers(0, len(shared)))], *own)
        params = TokenParams(
            max_tokens=draw(st.integers(1, longest - len(prompt))),
            seed=draw(st.integers(0, 2)),
            n=draw(st.integers(1, 3)),
            eos_token_ids=draw(st.sampled_from([(), (3,), tuple(range(0, VOCAB, 7))])),
            prompt_logprobs=draw(st.sampled_from([None, None, None, 0])),
        )
        result.append(EngineRequest(f"r{index}", prompt, params, priority=draw(st.integers(-1, 1))))
    return result


def run(
    engine: Engine, feed: list[EngineRequest], aborts: dict[int, str] | None = None
) -> dict[tuple[str, int], list[SequenceDelta]]:
    """Feed a request a step, abort at given steps, and run to the end, checking what must always hold."""
    deltas: dict[tuple[str, int], list[SequenceDelta]] = defaultdict(list)
    pending, step = list(feed), 0
    while pending or engine.has_work:
        if pending:
            engine.add(pending.pop(0))
        if aborts and step in aborts:
            engine.abort(aborts[step])
        for delta in engine.step():
            deltas[delta.request_id, delta.index].append(delta)
        engine.check_integrity()
        step += 1
        assert step < 20_000, "requests starve"
    return deltas


def tokens_of(deltas: list[SequenceDelta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


@hypothesis_settings(max_examples=250, deadline=None)
@given(st.data())
def test_tokens_do_not_depend_on_pages_chunks_order_preemption_hits_or_overlap(data: st.DataObject) -> None:
    config = data.draw(engine_settings())
    feed = data.draw(requests(config.max_model_len - 1))
    device = PagedExecutor(config)
    engine = Engine(config, device)
    deltas = run(engine, feed)
    windows = [group.window for group in config.layout.groups]
    for request in feed:
        prompt, params = request.prompt_token_ids, request.params
        end = min(len(prompt) + params.max_tokens, config.max_model_len)
        for index in range(params.n):
            got = deltas[request.request_id, index]
            assert tokens_of(got) == reference(prompt, params, index, windows, end)
            assert [delta.finish_reason is not None for delta in got] == [False] * (len(got) - 1) + [True]
        first = deltas[request.request_id, 0][0]
        assert first.cached_tokens is not None
        assert first.cached_tokens < len(prompt)
        others = [d for i in range(params.n) for d in deltas[request.request_id, i] if d is not first]
        assert all(delta.cached_tokens is None for delta in others)
        if params.prompt_logprobs is not None:
            assert first.cached_tokens == 0
            scores = first.prompt_logprobs
            assert scores is not None
            assert [s and (s.token_id, -s.logprob) for s in scores] == [
                None,
                *((t, i) for i, t in enumerate(prompt[1:])),
            ]
    assert engine.stats().kv_blocks_used == 0
    assert engine.stats().requests_finished_total["stop"] + engine.stats().requests_finished_total["length"] == len(
        feed
    )


@hypothesis_settings(max_examples=150, deadline=None)
@given(st.data())
def test_aborted_requests_leave_nothing_and_disturb_nobody(data: st.DataObject) -> None:
    config = data.draw(engine_settings())
    feed = data.draw(requests(config.max_model_len - 1))
    aborts = data.draw(st.dictionaries(st.integers(0, 30), st.sampled_from([r.request_id for r in feed]), max_size=5))
    engine = Engine(config, PagedExecutor(config))
    deltas = run(engine, feed, aborts)
    windows = [group.window for group in config.layout.groups]
    for request in feed:
        for index in range(request.params.n):
            got = deltas[request.request_id, index]
            end = min(len(request.prompt_token_ids) + request.params.max_tokens, config.max_model_len)
            want = reference(request.prompt_token_ids, request.params, index, windows, end)
            if request.request_id in aborts.values():
                assert tokens_of(got) == want[: len(tokens_of(got))]
            else:
                assert tokens_of(got) == want
    assert engine.stats().kv_blocks_used == 0
    assert not engine.has_work


@pytest.mark.parametrize("overlap", [False, True])
def test_a_preempted_sequence_returns_to_the_front(overlap: bool) -> None:
    config = settings(4, 12, max_model_len=40, max_num_seqs=4, max_num_batched_tokens=64, overlap=overlap)
    engine = Engine(config, PagedExecutor(config))
    feed = [EngineRequest(f"r{i}", (i, 1, 2, 3), TokenParams(max_tokens=30, seed=0)) for i in range(3)]
    deltas = run(engine, feed)
    assert engine.scheduler.preemptions > 0
    finished = [request_id for (request_id, _), got in deltas.items() if got[-1].finish_reason is FinishReason.LENGTH]
    assert sorted(finished) == ["r0", "r1", "r2"]
