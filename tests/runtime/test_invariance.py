"""A request's tokens are its own: no setting, neighbour or accident of scheduling changes them (float64)."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.support.torch_engine import finish, least_blocks, tokens, torch_engine
from thranite.request import EngineRequest
from thranite.sampling_params import TokenParams

Outputs = dict[tuple[str, int], list[int]]
MODELS = ["llama", "gemma3"]
VOCAB = 131


def workload(seed: int, count: int = 6) -> list[EngineRequest]:
    """Greedy and sampled requests with penalties, n > 1, logprobs and shared prefixes."""
    rng = random.Random(seed)
    shared = [rng.randrange(VOCAB) for _ in range(40)]
    requests = []
    for index in range(count):
        prompt = shared[: rng.randrange(41)] + [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 20))]
        params = TokenParams(
            max_tokens=rng.randrange(1, 24),
            seed=rng.randrange(1000),
            n=rng.choice([1, 1, 3]),
            temperature=rng.choice([0.0, 0.7, 1.3]),
            top_p=rng.choice([1.0, 0.8]),
            top_k=rng.choice([0, 11]),
            min_p=rng.choice([0.0, 0.02]),
            repetition_penalty=rng.choice([1.0, 1.3]),
            presence_penalty=rng.choice([0.0, 0.5]),
            bad_words=rng.choice([(), ((1, 2), (3,))]),
            eos_token_ids=(5,),
            min_tokens=rng.choice([0, 1]),
            logprobs=rng.choice([None, 2]),
        )
        requests.append(EngineRequest(f"r{index}", tuple(prompt), params))
    return requests


@cache
def workload_alone(model: str, seed: int) -> Outputs:
    return alone(model, workload(seed))


def alone(model: str, requests: list[EngineRequest]) -> Outputs:
    """Each request in an engine of its own: one block size, one chunk, no neighbours."""
    outputs: Outputs = {}
    for request in requests:
        engine = torch_engine(model, block_size=16, max_num_batched_tokens=96, enable_prefix_caching=False)
        outputs.update({key: tokens(deltas) for key, deltas in finish(engine, [request]).items()})
    return outputs


@pytest.mark.parametrize("model", MODELS)
@hypothesis_settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_tokens_are_the_same_under_any_setting(model: str, data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 4))
    requests, want = workload(seed), workload_alone(model, seed)
    size = data.draw(st.sampled_from([1, 4, 8, 32]))
    budget = data.draw(st.sampled_from([2, 5, 17, 64]))
    changes: dict[str, Any] = {
        "max_num_batched_tokens": budget,
        "num_blocks": least_blocks(model, size, budget) + data.draw(st.sampled_from([0, 5, 400])),
        "max_num_seqs": data.draw(st.integers(3, 8)),
        "enable_prefix_caching": data.draw(st.booleans()),
        "overlap": data.draw(st.booleans()),
    }
    engine = torch_engine(model, block_size=size, **changes)
    order = data.draw(st.permutations(requests))
    got = {key: tokens(deltas) for key, deltas in finish(engine, order).items()}
    assert got == want
    again = {key: tokens(deltas) for key, deltas in finish(engine, order).items()}  # now from the prefix cache
    assert again == want


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("overlap", [False, True])
def test_preempted_requests_lose_no_token(model: str, overlap: bool) -> None:
    requests = [
        EngineRequest(f"r{i}", tuple(range(i, i + 30)), TokenParams(60, seed=i, temperature=1.0)) for i in range(4)
    ]
    engine = torch_engine(model, num_blocks=least_blocks(model, 4, 64) + 8, overlap=overlap)
    got = {key: tokens(deltas) for key, deltas in finish(engine, requests).items()}
    assert engine.scheduler.preemptions > 0
    assert got == alone(model, requests)


@pytest.mark.parametrize("chunk", [3, 16, 96])
def test_prompt_logprobs_do_not_depend_on_chunks_or_the_cache(chunk: int) -> None:
    prompt = tuple(range(7, 57))
    request = EngineRequest("r", prompt, TokenParams(4, seed=0, temperature=0.0, logprobs=3, prompt_logprobs=3))
    engine = torch_engine("llama", max_num_batched_tokens=chunk)
    first = finish(engine, [request])["r", 0][0]
    second = finish(engine, [request])["r", 0][0]  # its blocks are cached now, and not used
    whole = finish(torch_engine("llama", max_num_batched_tokens=96), [request])["r", 0][0]
    assert first.cached_tokens == second.cached_tokens == 0
    for got in (first, second):
        assert got.prompt_logprobs is not None
        assert whole.prompt_logprobs is not None
        assert len(got.prompt_logprobs) == len(prompt)
        assert got.prompt_logprobs[0] is None
        for mine, theirs, token in zip(got.prompt_logprobs[1:], whole.prompt_logprobs[1:], prompt[1:], strict=True):
            assert mine is not None
            assert theirs is not None
            assert (mine.token_id, mine.rank, [t for t, _ in mine.top]) == (
                token,
                theirs.rank,
                [t for t, _ in theirs.top],
            )
            assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-9)


def test_samples_of_one_request_differ_and_equal_their_single_runs() -> None:
    """Sample i of n draws from (seed, i, position): the same whatever n is."""
    prompt = tuple(range(20))
    outputs = []
    for n in (2, 4):
        request = EngineRequest("r", prompt, TokenParams(12, seed=3, n=n, temperature=1.0))
        deltas = finish(torch_engine("llama"), [request])
        outputs.append([tokens(deltas["r", i]) for i in range(n)])
    assert outputs[0] == outputs[1][:2]
    assert len({tuple(o) for o in outputs[1]}) == 4
