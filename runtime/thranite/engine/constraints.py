"""Constraints that must see a token on the host before the next may be sampled: their bitmasks arrive late.

A grammar is one; bad words of several tokens are another. The forward pass is launched meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from thranite.sampling_params import TokenParams


class TokenConstraint(Protocol):
    """Follows one sequence."""

    def accept(self, token: int) -> None:
        """The sequence grew by `token`."""

    def bitmask(self) -> bytes | None:
        """Tokens allowed next, packed as `plan.Bitmasks` says; None: all."""
        ...


class BadWords:
    """Bans the last token of each bad word whose other tokens the sequence ends with.

    Words of one token are the sampler's.
    """

    def __init__(self, words: Sequence[tuple[int, ...]], vocab_size: int, tokens: Sequence[int]) -> None:
        self._words = [word for word in words if len(word) > 1]
        self._longest = max(len(word) for word in self._words) - 1
        self._size = (vocab_size + 31) // 32 * 4
        self._tail = list(tokens[-self._longest :])

    def accept(self, token: int) -> None:
        self._tail = [*self._tail, token][-self._longest :]

    def bitmask(self) -> bytes | None:
        tail = tuple(self._tail)
        banned = [word[-1] for word in self._words if tail[-(len(word) - 1) :] == word[:-1]]
        if not banned:
            return None
        mask = bytearray(b"\xff" * self._size)
        for token in banned:
            mask[token >> 3] &= ~(1 << (token & 7)) & 0xFF
        return bytes(mask)


def make_constraint(params: TokenParams, vocab_size: int, tokens: Sequence[int]) -> TokenConstraint | None:
    """The late constraint of a sequence that starts with `tokens`, if it has one."""
    if any(len(word) > 1 for word in params.bad_words):
        return BadWords(params.bad_words, vocab_size, tokens)
    return None
