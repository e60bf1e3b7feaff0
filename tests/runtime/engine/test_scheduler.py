"""Policy: who runs, who waits, who is refused."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.support.paged_executor import VOCAB, PagedExecutor, settings
from thranite.engine.engine import Engine
from thranite.engine.kv_groups import plan_kv_layout
from thranite.engine.request_queue import RequestQueue
from thranite.errors import DoesNotFit, InvalidRequest, Rejected
from thranite.models.spec import Activation, LayerSpec, ModelSpec
from thranite.request import EngineRequest, FinishReason, SequenceDelta
from thranite.sampling_params import TokenParams


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make(clock: Clock | None = None, **changes: Any) -> tuple[Engine, PagedExecutor]:
    config = settings(**changes)
    device = PagedExecutor(config)
    return Engine(config, device, clock or Clock()), device


def request(name: str, prompt: int | tuple[int, ...] = 4, max_tokens: int = 8, **fields: Any) -> EngineRequest:
    n, bad_words = fields.pop("n", 1), fields.pop("bad_words", ())
    tokens = tuple(range(prompt)) if isinstance(prompt, int) else prompt
    return EngineRequest(name, tokens, TokenParams(max_tokens, 0, n=n, bad_words=bad_words), **fields)


def drain(engine: Engine) -> list[SequenceDelta]:
    deltas = []
    while engine.has_work:
        deltas += engine.step()
        engine.check_integrity()
    return deltas


def test_decodes_come_before_prompts_and_chunks_fill_the_budget() -> None:
    engine, device = make(max_num_batched_tokens=6)
    engine.add(request("a", 5))
    engine.step()
    engine.add(request("b", tuple(range(50, 70)), max_tokens=2))
    for _ in range(4):
        engine.step()
    chunks = [(list(p.decodes), [len(c.token_ids) for c in p.prefills]) for p in device.plans]
    slot = device.plans[0].starts[0].slot
    assert chunks == [([], [5]), ([slot], [5]), ([slot], [5]), ([slot], [5]), ([slot], [5])]


@pytest.mark.parametrize(
    ("bad", "param"),
    [
        (request("x", 64), "prompt"),
        (request("x", ()), "prompt"),
        (request("x", (1, VOCAB)), "prompt"),
        (request("x", (-1,)), "prompt"),
        (request("x", n=9), "n"),
        (request("taken"), "request_id"),
    ],
)
def test_what_can_never_run_is_refused_by_name(bad: EngineRequest, param: str) -> None:
    engine, _ = make()
    engine.add(request("taken"))
    with pytest.raises(InvalidRequest) as caught:
        engine.add(bad)
    assert caught.value.param == param
    assert engine.stats().requests_rejected_total["invalid"] == 1


def test_a_full_queue_and_a_drain_refuse_with_a_reason() -> None:
    engine, _ = make(max_waiting_requests=2)
    engine.add(request("a"))
    engine.add(request("b"))
    with pytest.raises(Rejected, match="2 requests are waiting"):
        engine.add(request("c"))
    engine.set_draining(True)
    with pytest.raises(Rejected, match="draining"):
        engine.add(request("c"))
    assert {d.request_id for d in drain(engine)} == {"a", "b"}
    engine.set_draining(False)
    engine.add(request("c"))
    rejected = engine.stats().requests_rejected_total
    assert (rejected["queue_full"], rejected["draining"]) == (1, 1)


def test_an_engine_whose_cache_cannot_hold_the_longest_sequence_is_not_built() -> None:
    with pytest.raises(DoesNotFit, match="one sequence of 64 tokens needs 16 KV blocks; there are 15"):
        make(num_blocks=16)


def test_a_prompt_that_waits_is_held_once_whatever_its_samples() -> None:
    engine, _ = make()
    engine.add(request("a", 10, n=4))
    parent = engine.scheduler.queue.pop().parent
    assert sum(len(seq.tokens) for seq in parent.sequences) == 10
    engine, _ = make()
    engine.add(request("b", 10, n=4))
    engine.abort("b")
    counted = dict(engine.stats().histograms)["generation_tokens"]
    assert (sum(counted.counts), counted.total) == (1, 0)


def test_gauges_count_requests_not_samples() -> None:
    clock = Clock()
    engine, _ = make(clock, max_num_seqs=3)
    assert engine.stats().requests_waiting == 0
    engine.add(request("a", 10, n=3, max_tokens=4))
    engine.add(request("b", 10, n=2))
    clock.now += 7
    stats = engine.stats()
    assert (stats.requests_waiting, stats.requests_running, stats.waiting_tokens) == (2, 0, 20)
    assert stats.oldest_waiting_seconds == 7
    engine.step()
    stats = engine.stats()
    assert (stats.requests_waiting, stats.requests_running, stats.waiting_tokens) == (1, 1, 10)
    assert stats.kv_cache_usage_ratio == 3 / 63  # three samples share the prompt's three blocks
    drain(engine)
    stats = engine.stats()
    assert stats.requests_finished_total["length"] == 2
    assert (stats.generation_tokens_total, stats.prompt_tokens_total) == (12 + 16, 20)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_deadline_ends_a_request_wherever_it_is(overlap: bool) -> None:
    clock = Clock()
    engine, _ = make(clock, max_num_seqs=1, overlap=overlap)
    engine.add(request("runs", max_tokens=40, timeout_seconds=5.0))
    engine.add(request("waits", timeout_seconds=5.0))
    engine.step()
    engine.step()
    clock.now += 5
    ended = {d.request_id: d for d in engine.step() if d.finish_reason is not None}
    assert {d.finish_reason for d in ended.values()} == {FinishReason.TIMEOUT}
    assert "while running" in str(ended["runs"].error)
    assert "while waiting" in str(ended["waits"].error)
    assert drain(engine) == []
    assert engine.stats().requests_finished_total["timeout"] == 2


@pytest.mark.parametrize("overlap", [False, True])
def test_stop_ends_one_sample_and_leaves_the_others(overlap: bool) -> None:
    engine, _ = make(overlap=overlap)
    engine.add(request("a", n=2, max_tokens=10))
    engine.stop("a", 0)  # no output yet: ignored
    while not (deltas := engine.step()):
        pass
    assert [d.index for d in deltas] == [0, 1]
    engine.stop("a", 0)
    engine.stop("a", 0)
    engine.stop("a", 7)
    engine.stop("unknown", 0)
    rest = drain(engine)
    assert {d.index for d in rest} == {1}
    assert len(rest) == 9
    assert rest[-1].finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("overlap", [False, True])
def test_bad_words_of_several_tokens_arrive_as_late_masks(overlap: bool) -> None:
    engine, device = make(overlap=overlap)
    engine.add(request("free", max_tokens=6))
    free = [t for d in drain(engine) for t in d.token_ids]
    engine.add(request("bound", max_tokens=6, bad_words=((free[1], free[2]), (free[0],))))
    bound = [t for d in drain(engine) for t in d.token_ids]
    assert bound[:2] == free[:2]  # words of one token are the sampler's, not the engine's
    assert bound[2] == (free[2] + 1) % VOCAB
    assert device.late_masks == 1


def test_a_second_prompt_reuses_the_first_ones_blocks_and_a_stranger_does_not() -> None:
    engine, _ = make()
    cached = []
    for name, salt in (("a", ""), ("b", ""), ("c", "tenant")):
        engine.add(request(name, 15, cache_salt=salt))
        cached += [d.cached_tokens for d in drain(engine) if d.cached_tokens is not None]
    assert cached == [0, 12, 0]
    stats = engine.stats()
    assert (stats.prefix_cache_queries_total, stats.prefix_cache_hits_total) == (45, 12)
    assert stats.cached_prompt_tokens_total == 12


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(-3, 3)), max_size=20))
@hypothesis_settings(max_examples=100, deadline=None)
def test_waiting_outweighs_priority(arrivals: list[tuple[float, int]]) -> None:
    """At any later moment the order by (priority - waited / aging) is the order of the fixed keys."""
    queue = RequestQueue(10.0)
    keys = [(queue.order(priority, arrival)[0], priority - (1000.0 - arrival) / 10.0) for arrival, priority in arrivals]
    for (key, score), (other_key, other_score) in itertools.combinations(keys, 2):
        assert (key < other_key) == (score < other_score) or abs(score - other_score) < 1e-9


def test_a_low_priority_is_not_starved_by_a_stream_of_urgent_requests() -> None:
    clock = Clock()
    engine, _ = make(clock, max_num_seqs=1, priority_aging_seconds=10.0)
    engine.add(request("first", max_tokens=2))
    engine.add(request("patient", max_tokens=2, priority=2))
    finished: list[str] = []
    for step in range(200):
        clock.now += 1.0
        engine.add(request(f"urgent{step}", max_tokens=2))
        finished += [d.request_id for d in engine.step() if d.finish_reason]
        if "patient" in finished:
            break
    waited = clock.now - 100.0
    assert 20 <= waited <= 50  # 20 s outweigh its priority; then those that came earlier still go first


def _gemma3(layers: int = 26) -> ModelSpec:
    """Gemma-3-1b's attention: five windows of 512 to one full layer."""

    def layer(index: int) -> LayerSpec:
        window = None if index % 6 == 5 else 512
        return LayerSpec(4, 1, 256, 0, window, 6912, 0.0625, None, False, False, False, True)

    return ModelSpec(
        "Gemma3ForCausalLM", VOCAB, 1152, tuple(layer(i) for i in range(layers)), (), Activation.GELU_TANH, 1e-6,
        True, True, 1.0, None, True, 32768, "bfloat16", (), None,
    )  # fmt: skip


def test_gemma_3_at_eight_windows_holds_under_35_percent_of_the_full_cache() -> None:
    layout = plan_kv_layout(_gemma3(), 16, "bfloat16")
    assert [(g.window, len(g.layers)) for g in layout.groups] == [(512, 4)] * 6 + [(None, 4)]
    length = 8 * 512
    config = settings(layout=layout, num_blocks=4000, max_model_len=length + 64, max_num_batched_tokens=256)
    engine = Engine(config, PagedExecutor(config))
    engine.add(request("a", tuple(i % VOCAB for i in range(length)), max_tokens=8))
    held = 0
    while engine.has_work:
        engine.step()
        held = max(held, engine.stats().kv_blocks_used)
    full = len(layout.groups) * -(-length // 16)
    assert held / full < 0.35
