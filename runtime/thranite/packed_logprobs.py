"""Log-probabilities as bytes, which become entries when somebody reads them.

An entry with five alternatives is seven objects. Made for every token they take the host as long as all else in a step,
and kept until a run ends they are a heap that the garbage collector walks through; bytes it does not look at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from struct import iter_unpack
from typing import Any, overload

from thranite.request import TokenLogprobs

HEAD, ALTERNATIVE = 12, 8  # bytes


class PackedLogprobs(Sequence[TokenLogprobs]):
    """Entries of `top` alternatives each, one after another in `data`. Equal to a sequence of the same entries.

    An entry is words of 32 bits in the machine's order: token, log-probability, rank; then of each alternative, the
    best first, id and log-probability.
    """

    __slots__ = ("data", "top")

    def __init__(self, data: bytes | bytearray, top: int) -> None:
        self.data, self.top = data, top

    def __len__(self) -> int:
        return len(self.data) // (HEAD + self.top * ALTERNATIVE)

    def __iter__(self) -> Iterator[TokenLogprobs]:
        for token, logprob, rank, *best in iter_unpack("=ifi" + self.top * "if", self.data):
            yield TokenLogprobs(token, logprob, rank, tuple(zip(best[::2], best[1::2], strict=True)))

    @overload
    def __getitem__(self, index: int) -> TokenLogprobs: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[TokenLogprobs, ...]: ...

    def __getitem__(self, index: int | slice) -> TokenLogprobs | tuple[TokenLogprobs, ...]:
        return tuple(self)[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedLogprobs, (self.data, self.top)

    def __repr__(self) -> str:
        return repr(tuple(self))


class ScoredPieces:
    """A sample's entries as they come: packed pieces become one."""

    __slots__ = ("_last", "pieces")

    def __init__(self) -> None:
        self.pieces: list[Sequence[TokenLogprobs]] = []
        self._last: tuple[bytearray, int] | None = None  # of the last piece if that is packed

    def add(self, piece: Sequence[TokenLogprobs]) -> None:
        if not isinstance(piece, PackedLogprobs):
            self.pieces.append(piece)
            self._last = None
        elif self._last is not None and self._last[1] == piece.top:
            self._last[0].extend(piece.data)
        else:
            self._last = bytearray(piece.data), piece.top
            self.pieces.append(PackedLogprobs(*self._last))
