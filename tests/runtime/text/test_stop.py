from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thranite.text.stop import StopMatch, StopStrings

TEXT = st.text("abc", max_size=24)
STOPS = st.lists(st.text("abc", min_size=1, max_size=5), max_size=4)


def whole(text: str, stops: list[str], include: bool, armed_from: int = 0) -> tuple[str, str | None]:
    """The definition, character by character: the first to end wins, the longest of those that end together."""
    for end in range(armed_from + 1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return (text[:end] if include else text[: end - len(stop)]), stop
    return text, None


def pieces(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


@given(TEXT, STOPS, st.booleans(), st.lists(st.integers(0, 100), max_size=8))
def test_any_split_gives_what_the_whole_text_gives(text: str, stops: list[str], include: bool, cuts: list[int]) -> None:
    matcher, sent = StopStrings(stops, include), ""
    want, want_stop = whole(text, stops, include)
    for piece in pieces(text, cuts):
        match = matcher.feed(piece)
        sent += match.text
        assert want.startswith(sent), "text after a stop string was sent"
        if match.stop is not None:
            break
    else:
        assert want_stop is None
        sent += matcher.flush()
        match = StopMatch("")
    assert (sent, match.stop) == (want, want_stop)


@given(TEXT, TEXT, STOPS, st.booleans())
def test_stop_strings_that_end_in_disarmed_text_do_not_count(
    early: str, late: str, stops: list[str], include: bool
) -> None:
    matcher = StopStrings(stops, include)
    sent, stop = "", None
    for char in early:
        sent += matcher.feed(char, armed=False).text
    for char in late:
        match = matcher.feed(char)
        sent, stop = sent + match.text, match.stop
        if stop is not None:
            break
    if stop is None:
        sent += matcher.flush()
    assert (sent, stop) == whole(early + late, stops, include, armed_from=len(early))


@given(TEXT, STOPS)
def test_only_a_possible_beginning_is_held_back(text: str, stops: list[str]) -> None:
    matcher = StopStrings(stops)
    match = matcher.feed(text)
    held = matcher.flush()
    if match.stop is None:
        assert match.text + held == text
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)
    else:
        assert held == ""


@pytest.mark.parametrize(
    ("stops", "include", "want"),
    [
        (["lo w"], False, "hel"),
        (["lo w"], True, "hello w"),
        (["world", "o"], False, "hell"),
        (["x"], False, "hello world"),
    ],
)
def test_examples(stops: list[str], include: bool, want: str) -> None:
    matcher = StopStrings(stops, include)
    sent = ""
    for char in "hello world":
        match = matcher.feed(char)
        sent += match.text
        if match.stop is not None:
            break
    assert sent + matcher.flush() == want
