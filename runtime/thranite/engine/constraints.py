"""Constraints that must see a token on the host before the next may be sampled: their bitmasks arrive late.

A grammar is one; bad words of several tokens are another. The forward pass is launched meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from thranite.request import Grammar
from thranite.sampling_params import TokenParams


class TokenConstraint(Protocol):
    """Follows one sequence.

    `ready`: nothing below has to wait; once so, for ever. `complete`: the token accepted last ended the text, whatever
    the request's parameters say of it. `failure`: why the sequence cannot go on as asked; tokens accepted since then do
    not fit.
    """

    @property
    def ready(self) -> bool: ...

    @property
    def complete(self) -> bool: ...

    @property
    def failure(self) -> str | None: ...

    def wait(self, seconds: float) -> None:
        """Until it is ready, or for so long."""

    def accept(self, token: int) -> None:
        """The sequence grew by `token`."""

    def bitmask(self) -> bytes | None:
        """Tokens allowed next, packed as `plan.Bitmasks` says; None: all."""
        ...


class GrammarMaker(Protocol):
    """Where an engine's grammars come from."""

    def constraint(self, grammar: Grammar, params: TokenParams) -> TokenConstraint:
        """A constraint for one sequence; may compile meanwhile."""
        ...

    def load(self) -> None:
        """Do at once what the first grammar would have to wait for."""
        ...


class BadWords:
    """Bans the last token of each bad word whose other tokens the sequence ends with.

    Words of one token are the sampler's.
    """

    ready = True
    complete = False
    failure = None

    def wait(self, seconds: float) -> None:
        return

    def __init__(self, words: Sequence[tuple[int, ...]], vocab_size: int, tokens: Sequence[int]) -> None:
        several = [word for word in words if len(word) > 1]
        self._by_last: dict[int, list[tuple[int, ...]]] = {}  # the token before the banned one → words
        for word in several:
            self._by_last.setdefault(word[-2], []).append(word)
        self._longest = max(map(len, several)) - 1
        self._size = (vocab_size + 31) // 32 * 4
        self._tail = list(tokens[-self._longest :])

    def accept(self, token: int) -> None:
        self._tail = [*self._tail, token][-self._longest :]

    def bitmask(self) -> bytes | None:
        tail = tuple(self._tail)
        begun = self._by_last.get(tail[-1], ()) if tail else ()
        banned = [word[-1] for word in begun if tail[-(len(word) - 1) :] == word[:-1]]
        if not banned:
            return None
        mask = bytearray(b"\xff" * self._size)
        for token in banned:
            mask[token >> 3] &= ~(1 << (token & 7)) & 0xFF
        return bytes(mask)


class Both:
    """Two constraints at once."""

    def __init__(self, first: TokenConstraint, second: TokenConstraint) -> None:
        self._parts = (first, second)

    @property
    def ready(self) -> bool:
        return all(part.ready for part in self._parts)

    def wait(self, seconds: float) -> None:
        next((part for part in self._parts if not part.ready), self._parts[0]).wait(seconds)

    @property
    def complete(self) -> bool:
        return any(part.complete for part in self._parts)

    @property
    def failure(self) -> str | None:
        return next((part.failure for part in self._parts if part.failure is not None), None)

    def accept(self, token: int) -> None:
        for part in self._parts:
            part.accept(token)

    def bitmask(self) -> bytes | None:
        first, second = (part.bitmask() for part in self._parts)
        if first is None or second is None:
            return second if first is None else first
        return (int.from_bytes(first, "little") & int.from_bytes(second, "little")).to_bytes(len(first), "little")


def make_constraint(
    params: TokenParams,
    vocab_size: int,
    tokens: Sequence[int],
    grammar: Grammar | None = None,
    grammars: GrammarMaker | None = None,
) -> TokenConstraint | None:
    """The late constraint of a sequence that starts with `tokens`, if it has one. `grammar` needs `grammars`."""
    words = None
    if any(len(word) > 1 for word in params.bad_words):
        words = BadWords(params.bad_words, vocab_size, tokens)
    if grammar is None or grammars is None:
        return words
    text = grammars.constraint(grammar, params)
    return text if words is None else Both(text, words)
