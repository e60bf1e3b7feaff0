"""Every option, in mixed batches, against a row-by-row reference."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.sampling import Row, expected_token, pack_mask, params, sample_rows
from thranite.runner.sampler import Sampler
from thranite.sampling_params import SamplingParams

CPU = torch.device("cpu")
VOCAB, SLOTS = 70, 8  # a vocabulary that ends inside a bitmask's word

tokens = st.integers(0, VOCAB - 1)
token_sets = st.lists(tokens, max_size=4, unique=True).map(tuple)


@st.composite
def sampling_rows(draw: st.DrawFn) -> Row:
    """A row with about half of the options off."""

    def maybe(off: object, strategy: st.SearchStrategy[object]) -> object:
        return draw(st.one_of(st.just(off), strategy))

    options = params(
        seed=draw(st.integers(-(2**63), 2**64 - 1)),
        temperature=maybe(0.0, st.floats(0.05, 3.0)),
        top_p=maybe(1.0, st.floats(0.05, 0.99)),
        top_k=maybe(0, st.integers(1, VOCAB)),
        min_p=maybe(0.0, st.floats(0.01, 1.0)),
        presence_penalty=maybe(0.0, st.floats(-2, 2)),
        frequency_penalty=maybe(0.0, st.floats(-2, 2)),
        repetition_penalty=maybe(1.0, st.floats(0.5, 2.0)),
        logit_bias=tuple(draw(st.dictionaries(tokens, st.floats(-100, 100), max_size=3)).items()),
        allowed_token_ids=maybe((), st.lists(tokens, min_size=3, max_size=20, unique=True).map(tuple)),
        bad_words=tuple(draw(st.lists(st.lists(tokens, min_size=1, max_size=2).map(tuple), max_size=2))),
        eos_token_ids=draw(token_sets),
        stop_token_ids=draw(token_sets),
        min_tokens=maybe(0, st.integers(1, 6)),
    )
    prompt, output = draw(st.lists(tokens, min_size=1, max_size=6)), draw(st.lists(tokens, max_size=6))
    mask = maybe(None, st.lists(st.booleans(), min_size=VOCAB, max_size=VOCAB).map(tuple))
    return Row(options, (*prompt, *output), len(prompt), draw(st.integers(0, 3)), mask)  # type: ignore[arg-type]


def usable(row: Row) -> bool:
    """Whether allowed ids, mask and bad words leave a token; a request without one has no right answer."""
    kept = set(row.params.allowed_token_ids or range(VOCAB)) - {w[0] for w in row.params.bad_words if len(w) == 1}
    if row.mask is not None:
        kept = {token for token in kept if row.mask[token]}
    return bool(kept)


@settings(max_examples=150, deadline=None)
@given(st.lists(sampling_rows(), min_size=1, max_size=SLOTS), st.integers(0, 2**32 - 1), st.booleans())
def test_mixed_batches_equal_the_row_by_row_reference(rows: list[Row], seed: int, ties: bool) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, (len(rows), VOCAB))
    if ties:
        logits = np.round(logits)
    rows = [row if usable(row) else dataclasses.replace(row, mask=None) for row in rows]
    slots = random.permutation(SLOTS)[: len(rows)].tolist()
    drawn = sample_rows(Sampler(VOCAB, SLOTS, CPU), torch.from_numpy(logits), rows, slots)
    checked = [(x, row, token) for x, row, token in zip(logits, rows, drawn, strict=True) if usable(row)]
    assert [token for _, _, token in checked] == [expected_token(x, row) for x, row, _ in checked]


@pytest.mark.parametrize("vocab", [600, 3000])
@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_truncation_beyond_the_cpu_prefix(vocab: int, spread: float) -> None:
    """Flat rows need a sort of the whole row, peaked rows do not; k on both sides of every limit."""
    random = np.random.default_rng(vocab)
    choices = [(k, p, m) for k in (0, 1, 100, 128, 129, 511, 512, 513) for p in (1.0, 0.6, 0.97) for m in (0.0, 0.02)]
    rows = [
        Row(params(seed=i, top_k=k, top_p=p, min_p=m, temperature=0.9), (1, 2), 2)
        for i, (k, p, m) in enumerate(choices)
    ]
    logits = random.normal(0, spread, (len(rows), vocab))
    drawn = sample_rows(Sampler(vocab, 64, CPU), torch.from_numpy(logits), rows, list(range(len(rows))))
    assert drawn == [expected_token(x, row) for x, row in zip(logits, rows, strict=True)]


def test_rows_of_several_chunks() -> None:
    """Likely tokens in every chunk, the last of which is cut short; a row whose first two chunks are ruled out."""
    options: list[dict[str, object]] = [{}, {"top_k": 9}, {"top_p": 0.7}, {"min_p": 0.02}, {"temperature": 0.0}]
    rows = [Row(params(seed=i, **option), (1, 2), 2) for i, option in enumerate(options * 4)]
    rows.append(Row(params(allowed_token_ids=tuple(range(8_500, 8_550))), (1,), 1))
    logits = np.random.default_rng(4).normal(0, 3, (len(rows), 9_001))
    drawn = sample_rows(Sampler(9_001, 64, CPU), torch.from_numpy(logits), rows, list(range(len(rows))))
    assert drawn == [expected_token(x, row) for x, row in zip(logits, rows, strict=True)]
    assert {token // 4_096 for token in drawn} == {0, 1, 2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_hottest_row_draws_what_is_allowed(dtype: torch.dtype) -> None:
    """Of a temperature that fp32 does not hold."""
    asked = SamplingParams(temperature=1e300, seed=1, allowed_token_ids=[5, 9, 40])
    resolved = asked.resolve(
        prompt_len=1, max_model_len=99, vocab_size=VOCAB, eos_token_ids=(), bad_words=(), seed=0
    )  # fmt: skip
    sampler = Sampler(VOCAB, SLOTS, CPU)
    rows = [Row(resolved, (1, *[2] * length), 1) for length in range(SLOTS)]
    assert set(sample_rows(sampler, torch.randn(SLOTS, VOCAB, dtype=dtype), rows, range(SLOTS))) <= {5, 9, 40}


def test_greedy_takes_the_lowest_of_equal_tokens() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, [5, 9, 40]] = 1.0
    assert sample_rows(Sampler(VOCAB, 1, CPU), logits, [Row(params(temperature=0.0), (1,), 1)], [0]) == [5]


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e-5])
@pytest.mark.parametrize("top_p", [1.0, 0.5])
def test_vanishing_temperature_is_greedy(temperature: float, top_p: float) -> None:
    logits = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(0))
    rows = [Row(params(temperature=temperature, top_p=top_p, seed=i), (1,), 1) for i in range(4)]
    assert sample_rows(Sampler(VOCAB, 4, CPU), logits, rows, [0, 1, 2, 3]) == logits.argmax(-1).tolist()


def test_a_finished_grammar_outweighs_min_tokens() -> None:
    row = Row(params(temperature=0.0, eos_token_ids=(7,), min_tokens=5), (1,), 1)
    only_eos = Row(row.params, (1,), 1, mask=tuple(token == 7 for token in range(VOCAB)))
    logits = torch.zeros(2, VOCAB)
    logits[:, 7] = 5.0
    assert sample_rows(Sampler(VOCAB, 2, CPU), logits, [row, only_eos], [0, 1]) == [0, 7]


def test_a_slot_forgets_its_last_sequence() -> None:
    sampler = Sampler(VOCAB, 2, CPU)
    logits = torch.randn(1, VOCAB, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    best = int(logits.argmax())
    loaded = params(temperature=0.0, presence_penalty=2.0, bad_words=((best,),), logprobs=2, min_tokens=9,
                    stop_token_ids=(best,))  # fmt: skip
    assert sample_rows(sampler, logits, [Row(loaded, (1, best), 1)], [1]) != [best]
    assert sample_rows(sampler, logits, [Row(params(temperature=0.0), (1,), 1)], [1]) == [best]
    assert sampler.sample(logits.clone(), [1], [1], {}).result()[1] == {}


def test_masks_of_other_slots_are_ignored_and_short_masks_refused() -> None:
    sampler = Sampler(VOCAB, 2, CPU)
    sampler.start([Row(params(temperature=0.0), (1,), 1).start(0)])
    logits = torch.arange(VOCAB, dtype=torch.float32)[None]
    nothing = pack_mask([False] * VOCAB)
    assert sampler.sample(logits.clone(), [0], [1], {1: nothing}).tokens.tolist() == [VOCAB - 1]
    with pytest.raises(ValueError, match="a bitmask has 8 bytes; this vocabulary needs 12"):
        sampler.sample(logits.clone(), [0], [1], {0: nothing[:8]})


def test_min_tokens_counts_output_from_the_prompt_on() -> None:
    row = params(temperature=0.0, eos_token_ids=(3,), min_tokens=2)
    sampler = Sampler(VOCAB, 1, CPU)
    sampler.start([Row(row, (1, 2, 9), 2).start(0)])  # resumed after one output token
    logits = torch.zeros(1, VOCAB)
    logits[0, 3] = 1.0
    drawn = [sampler.sample(logits.clone(), [0], [position], {}).tokens.item() for position in (3, 4)]
    assert drawn == [0, 3]
