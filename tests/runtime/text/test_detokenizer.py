from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer

from tests.support import tiny_tokenizers
from thranite.text.detokenizer import Detokenizer
from thranite.text.tokenizer import Tokenizer

BYTE_LEVEL = Tokenizer(tiny_tokenizers.byte_level())
BYTE_FALLBACK = Tokenizer(tiny_tokenizers.byte_fallback())
BOTH = pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, BYTE_FALLBACK], ids=["byte-level", "byte-fallback"])
# Letters with tokens of their own, characters of 2 to 4 bytes, spaces at any place.
TEXT = st.text(st.sampled_from("helo é日🌶\u200d "), max_size=20)


def run(tokenizer: Tokenizer, prompt: list[int], ids: list[int], skip_special: bool = True) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prompt, skip_special)
    return [*(detokenizer.step(token) for token in ids), detokenizer.flush()]


@BOTH
@given(text=TEXT)
def test_the_pieces_make_the_whole_and_no_piece_holds_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    pieces = run(tokenizer, [], ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)
    assert pieces[-1] == ""


@BOTH
@given(prompt=TEXT, output=TEXT)
def test_output_continues_the_prompt_s_text(tokenizer: Tokenizer, prompt: str, output: str) -> None:
    """Cut between any two tokens, also within a character, which then belongs to the output."""
    ids = tokenizer.encode(prompt + output, add_special_tokens=False)
    for cut in range(len(ids) + 1):
        text = "".join(run(tokenizer, ids[:cut], ids[cut:]))
        if cut < len(ids):
            assert whole_characters(tokenizer, ids[:cut]) + text == tokenizer.decode(ids)


def whole_characters(tokenizer: Tokenizer, ids: list[int]) -> str:
    texts = [tokenizer.decode(ids[: len(ids) - incomplete]) for incomplete in range(min(4, len(ids) + 1))]
    return next(text for text in texts if "\ufffd" not in text)


@given(st.lists(st.integers(0, BYTE_LEVEL.vocab_size + 5), max_size=60))
def test_any_byte_level_tokens_decode_as_at_once(ids: list[int]) -> None:
    pieces = run(BYTE_LEVEL, [], ids)
    whole = BYTE_LEVEL.decode(ids)
    # Runs of bytes that are no text are given out before they end; their number of U+FFFD may differ there.
    assert "".join(pieces).replace("\ufffd", "") == whole.replace("\ufffd", "")


@given(st.lists(st.integers(0, BYTE_FALLBACK.vocab_size + 5), max_size=60))
def test_invalid_byte_runs_do_not_stop_the_text(ids: list[int]) -> None:
    """Byte fallback: a bad byte changes what the bytes before it decode to, after they were given out."""
    pieces = run(BYTE_FALLBACK, [], [*ids, *BYTE_FALLBACK.encode("hello", add_special_tokens=False)])
    assert "".join(pieces).endswith("hello")


class Redecoding(Detokenizer):
    """The window decoded at every token, as where DecodeStream cannot go on."""

    def _new_stream(self) -> None:
        return None


@BOTH
@given(data=st.data(), skip_special=st.booleans())
def test_the_stream_in_rust_gives_what_decoding_the_window_gives(
    tokenizer: Tokenizer, data: st.DataObject, skip_special: bool
) -> None:
    """Text, bytes that are none, special tokens and ids that do not exist, behind any prompt: the same pieces."""
    parts = st.one_of(TEXT.map(lambda text: tokenizer.encode(text, add_special_tokens=False)), any_ids(tokenizer))
    prompt, ids = (list(chain(*data.draw(st.lists(parts, max_size=3)))) for _ in range(2))
    pieces = []
    for kind in (Detokenizer, Redecoding):
        detokenizer = kind(tokenizer, prompt, skip_special)
        pieces.append([*(detokenizer.step(token) for token in ids), detokenizer.flush()])
    assert pieces[0] == pieces[1]


def any_ids(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, tokenizer.vocab_size + 5), max_size=20)


def byte_ids(rust: RustTokenizer, data: bytes) -> list[int]:
    return [index for byte in data if (index := rust.token_to_id(f"<0x{byte:02X}>")) is not None]


def test_a_valid_character_then_a_bad_byte() -> None:
    ids = byte_ids(BYTE_FALLBACK.rust, "日".encode() + b"\xff") + BYTE_FALLBACK.encode("he", add_special_tokens=False)
    assert "".join(run(BYTE_FALLBACK, [], ids)).startswith("日\ufffd")


def test_an_incomplete_character_is_flushed_at_the_end() -> None:
    ids = BYTE_LEVEL.encode("a🌶", add_special_tokens=False)[:-1]
    assert run(BYTE_LEVEL, [], ids)[-1] == "\ufffd"


@pytest.mark.parametrize(("skip_special", "want"), [(True, "hello"), (False, "hello<|eos|>")])
def test_special_tokens(skip_special: bool, want: str) -> None:
    eos = BYTE_LEVEL.rust.token_to_id("<|eos|>")
    assert eos is not None
    ids = [*BYTE_LEVEL.encode("hello", add_special_tokens=False), eos]
    assert "".join(run(BYTE_LEVEL, [], ids, skip_special)) == want


def test_the_first_token_keeps_its_space_behind_a_prompt_and_loses_it_alone() -> None:
    he = BYTE_FALLBACK.rust.token_to_id("▁he")
    assert he is not None
    prompt = BYTE_FALLBACK.encode("hello")
    assert "".join(run(BYTE_FALLBACK, prompt, [he])) == " he"
    assert "".join(run(BYTE_FALLBACK, [], [he])) == "he"


@pytest.mark.parametrize("make", [lambda: 0x80, lambda: 0xFF])
def test_long_runs_of_bad_bytes_stay_cheap(make: Callable[[], int]) -> None:
    """The window must not grow with the run: text comes out every few tokens."""
    token = BYTE_FALLBACK.rust.token_to_id(f"<0x{make():02X}>")
    assert token is not None
    detokenizer = Detokenizer(BYTE_FALLBACK, [], True)
    pieces = [detokenizer.step(token) for _ in range(200)]
    assert max(map(len, pieces)) <= 32
    assert len("".join(pieces)) >= 150
