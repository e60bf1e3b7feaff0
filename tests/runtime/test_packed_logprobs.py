"""Log-probabilities kept as bytes read like the entries that they stand for."""

from __future__ import annotations

import gc
import pickle
from struct import pack

import pytest

from thranite.outputs import CompletionOutput
from thranite.packed_logprobs import PackedLogprobs, ScoredPieces
from thranite.request import TokenLogprobs

ENTRIES = (
    TokenLogprobs(7, -0.5, 1, ((7, -0.5), (2**31 - 1, -1.25))),
    TokenLogprobs(0, -3.0, 151_936, ((7, -0.5), (9, float("-inf")))),
    TokenLogprobs(5, -8.0, 12, ((6, -0.25), (1, -2.0))),
)


def packed(*entries: TokenLogprobs) -> PackedLogprobs:
    data = b"".join(
        pack("=ifi", *entry[:3]) + b"".join(pack("=if", *alternative) for alternative in entry.top) for entry in entries
    )
    return PackedLogprobs(data, len(entries[0].top) if entries else 0)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_it_is_a_sequence_of_entries(count: int) -> None:
    found, wanted = packed(*ENTRIES[:count]), ENTRIES[:count]
    assert len(found) == count
    assert tuple(found) == wanted
    assert all(found[index] == entry for index, entry in enumerate(wanted))
    assert found[1:] == wanted[1:]
    assert found == wanted
    assert found == list(wanted)
    assert found != (*wanted, ENTRIES[0])
    assert repr(found) == repr(wanted)
    assert pickle.loads(pickle.dumps(found)) == found
    with pytest.raises(IndexError):
        found[count]


def test_without_alternatives() -> None:
    bare = TokenLogprobs(3, -1.5, 2, ())
    assert list(packed(bare, bare)) == [bare, bare]


def test_an_output_s_entries_are_made_when_read() -> None:
    """Pieces of one kind become one, which the garbage collector has nothing to do with."""
    scores = ScoredPieces()
    for entry in ENTRIES:
        scores.add(packed(entry))
    assert len(scores.pieces) == 1
    assert not gc.is_tracked(scores.pieces[0].data)  # type: ignore[attr-defined]
    scores.add(ENTRIES[:1])
    scores.add(packed(ENTRIES[2]))
    output = CompletionOutput(0, "", [7, 0, 5, 7, 5], "length", None, scores.pieces)
    assert output.logprobs == [*ENTRIES, ENTRIES[0], ENTRIES[2]]
    assert type(output.logprobs) is list
    assert output.logprobs is output.logprobs
    assert output.cumulative_logprob == pytest.approx(-20.0)
    assert output == CompletionOutput(0, "", [7, 0, 5, 7, 5], "length", None, [[*ENTRIES], ENTRIES[:1], ENTRIES[2:]])


def test_a_piece_is_not_changed_by_what_follows() -> None:
    """A delta may be kept by others."""
    first, scores = packed(ENTRIES[0]), ScoredPieces()
    scores.add(first)
    scores.add(packed(ENTRIES[1]))
    assert list(first) == [ENTRIES[0]]


def test_an_output_without_scores() -> None:
    output = CompletionOutput(0, "", [], "length", None, None)
    assert output.logprobs is None
    assert output.cumulative_logprob is None
