"""Who is queued, who is refused, and when a refused client is told to come back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.null_model import model_directory
from tests.support.paged_executor import PagedExecutor, settings
from thranite import LLM
from thranite.engine.admission import (
    LEAST_WAIT,
    LONGEST_WAIT,
    WINDOW_SECONDS,
    Amount,
    DrainRate,
    QueueLimits,
    check_room,
    refuse_oversized,
)
from thranite.engine.engine import Engine
from thranite.errors import InvalidRequest, Rejected
from thranite.request import EngineRequest
from thranite.sampling_params import TokenParams


@pytest.mark.parametrize(
    ("waiting", "tokens", "priority", "room"),
    [
        (Amount(0, 0), 5000, 0, True),  # an empty queue takes any request
        (Amount(89, 100), 10, 0, True),
        (Amount(90, 100), 10, 0, False),
        (Amount(90, 100), 10, -1, True),
        (Amount(100, 100), 10, -1, False),
        (Amount(1, 890), 10, 0, True),
        (Amount(1, 890), 11, 0, False),
        (Amount(1, 890), 110, -1, True),
        (Amount(1, 890), 111, -1, False),
        (Amount(90, 100), 10, 5, False),
    ],
)
def test_room(waiting: Amount, tokens: int, priority: int, room: bool) -> None:
    limits = QueueLimits(requests=100, tokens=1000, reserved_share=0.1)
    if room:
        check_room(limits, waiting, tokens, priority, DrainRate())
    else:
        with pytest.raises(Rejected) as refused:
            check_room(limits, waiting, tokens, priority, DrainRate())
        assert refused.value.reason == "queue_full"
        assert refused.value.retry_after_seconds == LEAST_WAIT


@pytest.mark.parametrize(
    ("prompts", "priority", "says"),
    [
        ([5000], 0, None),  # an empty queue takes any single one
        ([10] * 9, 0, None),
        ([10] * 10, 0, "10 prompts; at most 9"),
        ([10] * 10, -1, None),
        ([300] * 3, 0, None),
        ([301, 300, 300], 0, "901 tokens together; at most 900"),
        ([301, 300, 300], -1, None),
    ],
)
def test_what_no_queue_takes_is_refused_for_good(prompts: list[int], priority: int, says: str | None) -> None:
    limits = QueueLimits(requests=10, tokens=1000, reserved_share=0.1)
    if says is None:
        refuse_oversized(limits, prompts, priority, "prompt")
        return
    with pytest.raises(InvalidRequest, match=says) as refused:
        refuse_oversized(limits, prompts, priority, "prompt")
    assert refused.value.param == "prompt"


def test_a_batch_given_to_an_llm_is_no_overload(tmp_path: Path) -> None:
    llm = LLM(model=model_directory(tmp_path), device="null")
    check_room(llm.engine.settings.queue_limits, Amount(10**6, 10**9), 10**6, 0, DrainRate())
    llm.close()


def drained(
    requests_a_second: float, tokens_a_request: int, seconds: float, rate: DrainRate | None = None
) -> DrainRate:
    rate = rate or DrainRate()
    for step in range(int(seconds / 0.01) + 1):
        left = int(requests_a_second * step * 0.01)
        rate.observe(Amount(left, left * tokens_a_request), 500.0 + step * 0.01)
    return rate


def test_a_refused_client_comes_back_when_what_waits_has_left() -> None:
    rate = drained(10, 100, 30)
    assert rate.seconds_for(Amount(200, 20_000)) == pytest.approx(20, rel=0.05)
    assert rate.seconds_for(Amount(10, 30_000)) == pytest.approx(30, rel=0.05)  # long prompts wait
    assert rate.seconds_for(Amount(3, 300)) == LEAST_WAIT
    assert rate.seconds_for(Amount(4000, 400_000)) == LONGEST_WAIT


def test_only_the_last_seconds_count() -> None:
    rate = drained(10, 100, 30)
    for step in range(int(WINDOW_SECONDS * 2)):
        rate.observe(Amount(300, 30_000), 531.0 + step)
    assert rate.seconds_for(Amount(1, 100)) == LONGEST_WAIT  # nothing leaves any more


def test_the_engine_counts_what_waits_and_what_has_left() -> None:
    now = [0.0]
    config = settings(max_num_seqs=1, max_waiting_requests=4, max_waiting_tokens=40, high_priority_share=0.5)
    engine = Engine(config, PagedExecutor(config), lambda: now[0])

    def add(name: str, length: int, priority: int = 0) -> None:
        engine.add(EngineRequest(name, tuple(range(length)), TokenParams(8, 0), priority))

    add("runs", 4)
    engine.step()
    add("a", 10)
    add("b", 10)
    for _ in range(2):
        with pytest.raises(Rejected, match="2 requests are waiting"):
            add("c", 1)
    add("c", 15, priority=-1)
    with pytest.raises(Rejected, match="35 tokens are waiting already, and 40 may"):
        add("d", 6, priority=-1)
    add("d", 5, priority=-1)
    with pytest.raises(Rejected) as refused:
        add("e", 1, priority=-1)
    assert refused.value.retry_after_seconds == LEAST_WAIT
    engine.abort("a")
    while engine.has_work:
        now[0] += 0.5
        engine.step()
    queue = engine.scheduler.queue
    assert (len(queue), queue.tokens, queue.left_requests, queue.left_tokens) == (0, 0, 5, 44)
    for name in "12":
        add(name, 4)
    with pytest.raises(Rejected) as refused:
        add("3", 4)
    assert refused.value.retry_after_seconds is not None
    assert refused.value.retry_after_seconds > 2 * LEAST_WAIT  # one left about every four seconds


def test_preempted_requests_do_not_upset_the_counts() -> None:
    config = settings(num_blocks=12, max_model_len=40)
    engine = Engine(config, PagedExecutor(config))
    for number in range(4):
        engine.add(EngineRequest(str(number), tuple(range(8)), TokenParams(24, 0)))
    while engine.has_work:
        engine.step()
    queue = engine.scheduler.queue
    assert engine.stats().preemptions_total > 0
    assert (len(queue), queue.tokens, queue.left_requests, queue.left_tokens) == (0, 0, 4, 32)
