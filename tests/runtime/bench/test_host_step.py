"""What a decode step leaves on the host, and the benchmark that measures it."""

from __future__ import annotations

import gc

from host_step import OUTPUT, batch, counted_launches, make_llm, measure, run

ROWS = 8


def test_every_option_leaves_the_garbage_collector_next_to_nothing() -> None:
    """Three objects a token were 50,000 after a run of 64 requests, and a walk through all that torch made."""
    with counted_launches():
        llm = make_llm(ROWS)
        run(llm, ROWS, "decode64-options", 0)
        gc.collect()
        before = len(gc.get_objects())
        outputs = llm.generate(*batch(ROWS, "decode64-options", 1))
        gc.collect()
        assert len(gc.get_objects()) - before < ROWS * OUTPUT / 4
    for output in outputs:
        logprobs = output.outputs[0].logprobs
        assert [entry.token_id for entry in logprobs or ()] == output.outputs[0].token_ids
        assert {len(entry.top) for entry in logprobs or ()} == {5}


def test_a_measurement_counts_launches() -> None:
    plain = measure(ROWS, "decode64", 1, profile=False)
    every = measure(ROWS, "decode64-options", 1, profile=False)
    assert (round(plain.launches), round(every.launches)) == (2, 7)
    assert min(*plain.micros, *every.micros) > 0
