from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.fake_engine import INFO, TOKENIZER
from thranite.errors import InvalidRequest
from thranite.request import EngineRequest
from thranite.sampling_params import SamplingParams, StructuredOutputsParams
from thranite.text.prompt import Prompt, build_request, tokenize_prompt


def build(ids: list[int], params: SamplingParams, strict: bool = False) -> EngineRequest:
    return build_request("r", ids, params, INFO, TOKENIZER, seed=7, strict_length=strict)


@pytest.mark.parametrize(
    "prompt", ["hello", {"prompt": "hello"}, {"prompt_token_ids": TOKENIZER.encode("hello")}, TOKENIZER.encode("hello")]
)
def test_the_forms_of_a_prompt(prompt: Prompt) -> None:
    assert list(tokenize_prompt(prompt, TOKENIZER)) == TOKENIZER.encode("hello")


@pytest.mark.parametrize("prompt", [{}, {"prompt": "a", "prompt_token_ids": [1]}, {"text": "a"}])
def test_unknown_forms_are_refused(prompt: Prompt) -> None:
    with pytest.raises(InvalidRequest, match="a prompt is"):
        tokenize_prompt(prompt, TOKENIZER)


def test_text_needs_a_tokenizer() -> None:
    with pytest.raises(InvalidRequest, match="without a tokenizer"):
        tokenize_prompt("hello", None)
    with pytest.raises(InvalidRequest, match="without a tokenizer") as error:
        build_request("r", [1], SamplingParams(stop="a"), INFO, None, seed=0)
    assert error.value.param == "stop"


def test_truncation_keeps_the_end() -> None:
    assert build([1, 2, 3, 4], SamplingParams(truncate_prompt_tokens=2)).prompt_token_ids == (3, 4)
    assert build([1, 2], SamplingParams(truncate_prompt_tokens=5)).prompt_token_ids == (1, 2)


def test_parameters_are_bound() -> None:
    request = build([1, 2, 3], SamplingParams(max_tokens=None, n=2))
    assert request.params.max_tokens == INFO.max_model_len - 3
    assert request.params.eos_token_ids == INFO.eos_token_ids
    assert request.params.seed == 7
    assert build([1], SamplingParams(seed=3)).params.seed == 3
    assert build([1], SamplingParams(ignore_eos=True)).params.eos_token_ids == ()


def test_the_tokenizer_s_end_ends_too() -> None:
    """Fine-tunes for chats often name it in tokenizer_config.json alone."""
    own = TOKENIZER.eos_token_id
    assert own is not None
    for of_model, expected in [((3,), (3, own)), ((), (own,)), ((own, 3), (own, 3))]:
        info = replace(INFO, eos_token_ids=of_model)
        request = build_request("r", [1], SamplingParams(), info, TOKENIZER, seed=0)
        assert request.params.eos_token_ids == expected
        assert build_request("r", [1], SamplingParams(), info, None, seed=0).params.eos_token_ids == of_model
    narrow = replace(INFO, eos_token_ids=(3,), vocab_size=own)
    assert build_request("r", [1], SamplingParams(), narrow, TOKENIZER, seed=0).params.eos_token_ids == (3,)


@pytest.mark.parametrize("grammar", [None, StructuredOutputsParams(regex="a*")])
def test_a_minimum_beyond_the_room_is_the_room(grammar: StructuredOutputsParams | None) -> None:
    request = build([1, 2, 3], SamplingParams(max_tokens=None, min_tokens=2**70, structured_outputs=grammar))
    minimum = request.params.min_tokens if request.grammar is None else request.grammar.min_tokens
    assert minimum == INFO.max_model_len - 3


def test_max_tokens_beyond_the_room_is_cut_or_refused() -> None:
    params = SamplingParams(max_tokens=INFO.max_model_len)
    assert build([1, 2, 3], params).params.max_tokens == INFO.max_model_len - 3
    with pytest.raises(InvalidRequest, match=r"maximum context length is 128 tokens.*131 tokens \(3 in") as error:
        build([1, 2, 3], params, strict=True)
    assert error.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("ids", "params", "param"),
    [
        ([], SamplingParams(), "prompt"),
        ([1] * INFO.max_model_len, SamplingParams(), "prompt"),
        ([INFO.vocab_size], SamplingParams(), "prompt"),
        ([-1], SamplingParams(), "prompt"),
        ([1], SamplingParams(n=INFO.max_num_seqs + 1), "n"),
        ([1], SamplingParams(stop_token_ids=[INFO.vocab_size]), "stop_token_ids"),
        ([1], SamplingParams(logit_bias={INFO.vocab_size: 1.0}), "logit_bias"),
    ],
)
def test_what_can_never_be_served_is_refused(ids: list[int], params: SamplingParams, param: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        build(ids, params)
    assert error.value.param == param


def test_the_longest_prompt_that_fits() -> None:
    assert build([1] * (INFO.max_model_len - 1), SamplingParams()).params.max_tokens == 1


def test_bad_words_become_token_sequences_with_and_without_space() -> None:
    words = build([1], SamplingParams(bad_words=["wor", "x"])).params.bad_words
    assert tuple(TOKENIZER.encode("wor", add_special_tokens=False)) in words
    assert tuple(TOKENIZER.encode(" wor", add_special_tokens=False)) in words
    assert tuple(TOKENIZER.encode("x", add_special_tokens=False)) in words
    assert len(words) == 3, "a space token and then x is covered by x alone"


def test_bad_words_that_only_the_tokenizer_knows_are_never_said_anyway() -> None:
    """A fine-tune may have a token beyond its model's vocabulary, such as one for padding."""
    words = SamplingParams(bad_words=["x", "wor"])
    least = max(TOKENIZER.encode("x", add_special_tokens=False))
    known = [word for word in build([1], words).params.bad_words if max(word) <= least]
    small = replace(INFO, vocab_size=least + 1)
    kept = build_request("r", [1], words, small, TOKENIZER, seed=7).params.bad_words
    assert kept == tuple(known) != build([1], words).params.bad_words


def test_other_fields_are_handed_on() -> None:
    request = build_request(
        "r", [1], SamplingParams(), replace(INFO), TOKENIZER, seed=0, priority=-3, timeout_seconds=2.5, cache_salt="t"
    )
    assert (request.priority, request.timeout_seconds, request.cache_salt) == (-3, 2.5, "t")
