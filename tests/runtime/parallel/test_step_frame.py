"""Plans survive their way through a frame; bytes that are no frame are refused."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thranite.engine.plan import BlockUpdate, Prefill, SlotStart, StepPlan
from thranite.parallel.step_frame import (
    Launch,
    Prepare,
    Sample,
    Sleep,
    Stop,
    Wake,
    decode,
    encode_bare,
    encode_launch,
    encode_sample,
)
from thranite.parallel.wire import FrameError
from thranite.sampling_params import TokenParams

TOKEN = st.integers(0, 2**31 - 1)
TOKENS = st.lists(TOKEN, max_size=5)
FLOAT = st.floats(-2.0, 2.0, width=32)
PARAMS = st.builds(
    TokenParams,
    max_tokens=st.integers(1, 2**40),
    seed=st.integers(0, 2**64 - 1),
    n=st.integers(1, 100),
    temperature=FLOAT,
    top_p=FLOAT,
    top_k=st.integers(0, 2**31),
    min_p=FLOAT,
    presence_penalty=FLOAT,
    frequency_penalty=FLOAT,
    repetition_penalty=FLOAT,
    logit_bias=st.lists(st.tuples(TOKEN, FLOAT), max_size=3).map(tuple),
    allowed_token_ids=TOKENS.map(tuple),
    bad_words=st.lists(TOKENS.map(tuple), max_size=3).map(tuple),
    eos_token_ids=TOKENS.map(tuple),
    stop_token_ids=TOKENS.map(tuple),
    min_tokens=st.integers(0, 2**31),
    logprobs=st.none() | st.integers(0, 20),
    prompt_logprobs=st.none() | st.integers(0, 20),
)
SMALL = st.integers(0, 2000)
PLANS = st.builds(
    StepPlan,
    step=st.integers(0, 2**60),
    decodes=st.lists(SMALL, max_size=5),
    prefills=st.lists(
        st.builds(
            Prefill,
            SMALL,
            SMALL,
            TOKENS,
            TOKENS.map(tuple),
            st.none() | st.integers(0, 20),
            TOKENS,
            st.sampled_from([None, "last", "mean"]),
        ),
        max_size=3,
    ),
    starts=st.lists(st.builds(SlotStart, SMALL, SMALL, PARAMS, TOKENS, SMALL, SMALL, st.booleans()), max_size=3),
    blocks=st.lists(st.builds(BlockUpdate, SMALL, SMALL, SMALL, TOKENS), max_size=3),
    copies=st.lists(st.tuples(SMALL, SMALL), max_size=3),
)


def as_followers_see(start: SlotStart) -> SlotStart:
    """They report no scores, and count tokens only for penalties."""
    params = replace(start.params, logprobs=None, prompt_logprobs=None)
    return replace(start, params=params, token_ids=start.token_ids if params.penalized else [])


@settings(max_examples=200, deadline=None)
@given(plan=PLANS)
def test_plans_arrive_as_they_were_sent(plan: StepPlan) -> None:
    assert decode(encode_launch(plan)) == Launch(replace(plan, starts=[as_followers_see(s) for s in plan.starts]))


def test_no_parameter_is_forgotten() -> None:
    """Every field differs from its default here and arrives; whose scores are wanted is rank 0's alone to know."""
    values: dict[str, Any] = {
        "max_tokens": 7, "seed": 2**64 - 3, "n": 2, "temperature": 0.5, "top_p": 0.25, "top_k": 3, "min_p": 0.125,
        "presence_penalty": 0.5, "frequency_penalty": 0.75, "repetition_penalty": 1.5, "logit_bias": ((4, -1.5),),
        "allowed_token_ids": (1, 2), "bad_words": ((3, 4), (5,)), "eos_token_ids": (2,), "stop_token_ids": (9,),
        "min_tokens": 1,
    }  # fmt: skip
    assert {item.name for item in fields(TokenParams)} == set(values) | {"logprobs", "prompt_logprobs", "pooling"}
    start = SlotStart(1, 0, TokenParams(**values), [1, 2, 3], 2, 0)
    assert decode(encode_launch(StepPlan(0, starts=[start]))) == Launch(StepPlan(0, [], [], [start], [], []))


def test_no_field_of_a_prefill_is_forgotten() -> None:
    """Each decides what a rank computes, and whether it replays a graph for it."""
    values: dict[str, Any] = {
        "slot": 3, "start": 4, "token_ids": [5, 6], "samples": (1, 2), "prompt_logprobs": 0, "targets": [7],
        "pooling": "mean",
    }  # fmt: skip
    assert {item.name for item in fields(Prefill)} == set(values)
    plan = StepPlan(0, [], [Prefill(**values)], [], [], [])
    assert decode(encode_launch(plan)) == Launch(plan)


def test_masks_and_bare_frames() -> None:
    masks = {3: b"\x01\x02", 0: b"\xff" * 100}
    assert decode(encode_sample(masks)) == Sample(masks)
    assert decode(encode_sample({})) == Sample({})
    frames = (encode_bare(Stop()), encode_bare(Sleep()), encode_bare(Wake()), encode_bare(Prepare()))
    assert [decode(frame) for frame in frames] == [Stop(), Sleep(), Wake(), Prepare()]


def test_what_is_no_frame_is_refused() -> None:
    frame = encode_launch(StepPlan(3, decodes=[1, 2]))
    for length in range(len(frame)):
        with pytest.raises(FrameError):
            decode(frame[:length])
    with pytest.raises(FrameError, match="follow"):
        decode(frame + b"\0")
    with pytest.raises(FrameError, match="version 9"):
        decode(b"\x09" + frame[1:])
    with pytest.raises(FrameError, match="kind 77"):
        decode(frame[:2] + b"\x4d\x00" + frame[4:])
