"""Tokens made up for the null device: a hash of (seed, sample index, position), kept inside what sampling allows."""

from __future__ import annotations

import math
from collections.abc import Collection

from thranite.request import TokenLogprobs
from thranite.sampling_params import TokenParams

MASK = 2**64 - 1
BANNING_BIAS = -100.0
LN2 = math.log(2.0)


def mix(value: int) -> int:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014): a bijection of 64-bit integers that scatters bits."""
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def draw(params: TokenParams, sample_index: int, position: int) -> int:
    """64 bits that depend on (seed, sample index, position) alone."""
    return mix(mix(params.seed & MASK) ^ mix(sample_index << 32 | position))


class TokenMaker:
    """The tokens one sequence may bring. `eos_token_ids`: the model's, made up only if the request ends on them."""

    def __init__(
        self, params: TokenParams, sample_index: int, prompt_len: int, vocab_size: int, eos_token_ids: Collection[int]
    ) -> None:
        self._params, self._sample_index = params, sample_index
        self._prompt_len, self._vocab_size = prompt_len, vocab_size
        endings = frozenset(params.eos_token_ids) | frozenset(params.stop_token_ids)
        never = {token for token, bias in params.logit_bias if bias <= BANNING_BIAS}
        never |= {word[0] for word in params.bad_words if len(word) == 1}
        never |= frozenset(eos_token_ids) - endings
        self._banned = frozenset(never)
        self._banned_early = self._banned | endings
        self._choices = tuple(token for token in params.allowed_token_ids if token not in self._banned)

    def token(self, position: int, mask: bytes | None) -> int:
        """The token at `position`. Where nothing is allowed the mask holds, then the vocabulary."""
        early = position - self._prompt_len < self._params.min_tokens
        banned = self._banned_early if early else self._banned
        first = draw(self._params, self._sample_index, position)
        if self._choices:
            return self._first_allowed(self._choices, first, banned, mask)
        return self._first_allowed(range(self._vocab_size), first, banned, mask)

    def logprobs(self, token: int, count: int) -> TokenLogprobs:
        """Made-up log-probabilities: `token` is the likeliest, at probability one half, its successors follow."""
        top = tuple(((token + i) % self._vocab_size, -LN2 * (i + 1)) for i in range(count))
        return TokenLogprobs(token, -LN2, 1, top)

    @staticmethod
    def _first_allowed(choices: range | tuple[int, ...], first: int, banned: frozenset[int], mask: bytes | None) -> int:
        """From a scattered start the next token that neither `banned` nor `mask` forbids."""
        size = len(choices)
        masked = choices[first % size]
        for step in range(size):
            token = choices[(first + step) % size]
            if mask is not None and not mask[token >> 3] >> (token & 7) & 1:
                continue
            if token not in banned:
                return token
            masked = token
        return masked
