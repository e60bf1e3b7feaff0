from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fake_engine import TOKENIZER, logprobs_of
from thranite.request import FinishReason, SequenceDelta
from thranite.sampling_params import SamplingParams
from thranite.text.output import RequestText, TextDelta

EOS = TOKENIZER.eos_token_id or 0


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def deltas(tokens: list[int], cuts: list[int], finish: FinishReason, index: int = 0) -> list[SequenceDelta]:
    edges = sorted({0, len(tokens), *(cut % (len(tokens) + 1) for cut in cuts)})
    parts = [tokens[start:end] for start, end in pairwise(edges)] or [[]]
    return [
        SequenceDelta(
            "r",
            index,
            tuple(part),
            finish_reason=finish if number == len(parts) - 1 else None,
            logprobs=tuple(logprobs_of(token, 1) for token in part),
        )
        for number, part in enumerate(parts)
    ]


def run(
    params: SamplingParams, feed: list[SequenceDelta], incremental: bool = True
) -> tuple[list[TextDelta], RequestText]:
    text = RequestText(params, ids("hi"), TOKENIZER, incremental)
    return [news for delta in feed if (news := text.feed(delta)) is not None], text


def joined(found: list[TextDelta]) -> tuple[str, list[int], str | None, str | int | None]:
    tokens = [token for delta in found for token in delta.token_ids]
    return "".join(delta.text for delta in found), tokens, found[-1].finish_reason, found[-1].stop_reason


@given(
    st.text("abcé ", max_size=12),
    st.lists(st.text("abcé ", min_size=1, max_size=3), max_size=3),
    st.booleans(),
    st.integers(0, 6),
    st.lists(st.integers(0, 50), max_size=6),
)
def test_how_tokens_are_cut_into_deltas_changes_nothing(
    text: str, stops: list[str], include: bool, min_tokens: int, cuts: list[int]
) -> None:
    params = SamplingParams(
        stop=stops, include_stop_str_in_output=include, min_tokens=min_tokens, max_tokens=None, logprobs=0
    )
    tokens = [*ids(text), EOS]
    one_by_one, counted = run(params, deltas(tokens, list(range(len(tokens))), FinishReason.STOP))
    other, counted_too = run(params, deltas(tokens, cuts, FinishReason.STOP))
    assert joined(one_by_one) == joined(other)
    assert counted.completion_tokens == counted_too.completion_tokens == len(joined(other)[1])
    assert all(len(delta.logprobs or ()) == len(delta.token_ids) for delta in other)
    assert counted_too.finished
    at_once, counted_again = run(params, deltas(tokens, cuts, FinishReason.STOP), incremental=False)
    assert joined(at_once) == joined(other)
    assert counted_again.completion_tokens == counted.completion_tokens


def test_a_stop_string_ends_tokens_and_logprobs_with_the_token_that_completes_it() -> None:
    params = SamplingParams(stop="l", logprobs=0, max_tokens=None)
    found, text = run(params, deltas(ids("abc lol def"), [], FinishReason.LENGTH))
    assert joined(found) == ("abc ", ids("abc l"), "stop", "l")
    assert len(found[0].logprobs or ()) == len(ids("abc l"))
    assert text.completion_tokens == len(ids("abc l"))


def test_nothing_comes_after_a_stop_string() -> None:
    params = SamplingParams(stop="b", max_tokens=None)
    feed = deltas(ids("abcd"), [1, 2, 3], FinishReason.LENGTH)
    text = RequestText(params, (), TOKENIZER)
    results = [text.feed(delta) for delta in feed]
    assert [result is None for result in results] == [False, False, True, True]
    ending = results[1]
    assert ending is not None
    assert ending.finish_reason == "stop"
    assert feed[1].finish_reason is None, "the caller sees that it must stop the engine's sequence"
    assert text.open_samples == ()


def test_text_nobody_reads_along_comes_with_the_last_delta() -> None:
    feed = deltas(ids("héllo"), list(range(6)), FinishReason.LENGTH)
    found, _ = run(SamplingParams(max_tokens=None), feed, incremental=False)
    assert [delta.text for delta in found] == [*[""] * (len(found) - 1), "héllo"]
    assert len(found) == len(feed)


def test_samples_are_independent() -> None:
    params = SamplingParams(n=2, stop="b", max_tokens=None)
    feed = [*deltas(ids("ab"), [1], FinishReason.LENGTH), *deltas(ids("xyz"), [1], FinishReason.LENGTH, index=1)]
    found, text = run(params, feed)
    assert "".join(delta.text for delta in found if delta.index == 1) == "xyz"
    assert text.finished


@pytest.mark.parametrize(
    ("params", "want"),
    [
        (SamplingParams(), "abc"),
        (SamplingParams(skip_special_tokens=False), "abc"),
        (SamplingParams(skip_special_tokens=False, include_stop_str_in_output=True), "abc<|eos|>"),
        (SamplingParams(include_stop_str_in_output=True), "abc"),
    ],
)
def test_eos_is_a_token_and_no_text(params: SamplingParams, want: str) -> None:
    found, _ = run(params, deltas([*ids("abc"), EOS], [1], FinishReason.STOP))
    assert joined(found) == (want, [*ids("abc"), EOS], "stop", None)


@pytest.mark.parametrize(("include", "want"), [(False, "ab"), (True, "abc")])
def test_stop_token_ids(include: bool, want: str) -> None:
    (stop,) = ids("c")
    params = SamplingParams(stop_token_ids=[stop], include_stop_str_in_output=include)
    delta = SequenceDelta("r", 0, tuple(ids("abc")), FinishReason.STOP, stop_token_id=stop)
    assert joined(run(params, [delta])[0]) == (want, ids("abc"), "stop", stop)


def test_min_tokens_lets_stop_strings_pass() -> None:
    params = SamplingParams(stop="a", min_tokens=2, max_tokens=None)
    found, _ = run(params, deltas(ids("aaaa"), [1, 2, 3], FinishReason.LENGTH))
    assert joined(found) == ("aa", ids("aaa"), "stop", "a")


@pytest.mark.parametrize("finish", [FinishReason.LENGTH, FinishReason.TIMEOUT, FinishReason.ERROR])
def test_held_text_comes_with_the_end(finish: FinishReason) -> None:
    params = SamplingParams(stop="abcd", max_tokens=None)
    found, _ = run(params, deltas(ids("xabc"), [1, 2, 3], finish))
    assert "".join(delta.text for delta in found[:-1]) == "x"
    assert joined(found) == ("xabc", ids("xabc"), str(finish), None)


def test_without_detokenizing_tokens_pass_through() -> None:
    params = SamplingParams(detokenize=False)
    found, text = run(params, deltas([*ids("abc"), EOS], [1], FinishReason.STOP))
    assert joined(found) == ("", [*ids("abc"), EOS], "stop", None)
    assert text.completion_tokens == 4
