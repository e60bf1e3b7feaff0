"""The engine's logprobs in the three shapes that the wire has for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from thranite.request import TokenLogprobs
from thranite.server.wire.chat import ChatLogprobs, ContentLogprob, TopLogprob
from thranite.server.wire.completion import CompletionLogprobs
from thranite.text.detokenizer import Detokenizer
from thranite.text.tokenizer import Tokenizer

_LOWEST = -9999.0  # stands for minus infinity, which JSON cannot spell


class TokenText:
    """Tokens as the wire shows them; without a tokenizer by their ids."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer

    def bytes(self, token_id: int) -> bytes:
        return f"token_id:{token_id}".encode() if self._tokenizer is None else self._tokenizer.token_bytes(token_id)

    def text(self, token_id: int) -> str:
        return self.bytes(token_id).decode("utf-8", "replace")


def chat_logprobs(tokens: Sequence[TokenLogprobs], text: TokenText) -> ChatLogprobs:
    return ChatLogprobs([_content(token, text) for token in tokens])


def _content(token: TokenLogprobs, text: TokenText) -> ContentLogprob:
    top = [TopLogprob(text.text(i), _finite(logprob), list(text.bytes(i))) for i, logprob in token.top]
    spelt = text.bytes(token.token_id)
    return ContentLogprob(text.text(token.token_id), _finite(token.logprob), list(spelt), top)


class TextOffsets:
    """Where each token's text begins, in characters, behind the `start` characters that the `before` tokens spell.

    A token that is not shown takes none, and those of one character begin where it does. Without a tokenizer there is
    no text.
    """

    def __init__(
        self, tokenizer: Tokenizer | None, before: Sequence[int], skip_special_tokens: bool, start: int
    ) -> None:
        self._detokenizer = None if tokenizer is None else Detokenizer(tokenizer, before, skip_special_tokens)
        self._offset = start

    def next(self, token_id: int) -> int:
        offset = self._offset
        if self._detokenizer is not None:
            self._offset += len(self._detokenizer.step(token_id))
        return offset


def prompt_offsets(tokenizer: Tokenizer | None, ids: Sequence[int], shown: str) -> list[int]:
    """As `TextOffsets`, of a prompt in the text that it is shown as: special tokens may be part of it (as given by the
    client) or not (as the tokenizer put them before it)."""
    if tokenizer is None:
        return [0] * len(ids)
    detokenizer, offset, offsets = Detokenizer(tokenizer, [], skip_special_tokens=False), 0, []
    for token_id in ids:
        offsets.append(offset)
        special = tokenizer.specials.get(token_id)
        if special is not None:  # the detokenizer never sees it: what follows would not begin the text then
            offset += len(special) if shown.startswith(special, offset) else 0
            continue
        piece = detokenizer.step(token_id)
        if not shown.startswith(piece, offset) and shown.startswith(piece.lstrip(" "), offset):
            piece = piece.lstrip(" ")  # a space that the tokenizer alone put there
        offset += len(piece)
    return offsets


class CompletionLogprobsWriter:
    """One sample's logprobs in the completions' shape, piece by piece.

    `count`: alternatives shown; the engine may have found more for `prompt_logprobs`. `offsets`: the output's.
    """

    def __init__(self, text: TokenText, count: int, offsets: TextOffsets) -> None:
        self._text = text
        self._count = count
        self._offsets = offsets

    def write(self, tokens: Sequence[TokenLogprobs]) -> CompletionLogprobs:
        piece = CompletionLogprobs([], [], [], [])
        for token in tokens:
            self._add(piece, token.token_id, token, self._offsets.next(token.token_id))
        return piece

    def write_prompt(
        self, ids: Sequence[int], tokens: Sequence[TokenLogprobs | None], offsets: Sequence[int]
    ) -> CompletionLogprobs:
        """An echoed prompt; its first token follows nothing, hence has no probability."""
        piece = CompletionLogprobs([], [], [], [])
        for token_id, token, offset in zip(ids, tokens, offsets, strict=True):
            self._add(piece, token_id, token, offset)
        return piece

    def _add(self, piece: CompletionLogprobs, token_id: int, token: TokenLogprobs | None, offset: int) -> None:
        piece.tokens.append(self._text.text(token_id))
        piece.token_logprobs.append(None if token is None else _finite(token.logprob))
        piece.top_logprobs.append(None if token is None else self._top(token))
        piece.text_offset.append(offset)

    def _top(self, token: TokenLogprobs) -> dict[str, float]:
        """The best and the sampled token, by text; of tokens that show alike (parts of characters) the likeliest."""
        top: dict[str, float] = {}
        for token_id, logprob in (*token.top[: self._count], (token.token_id, token.logprob)):
            top.setdefault(self._text.text(token_id), _finite(logprob))
        return top


def join(first: CompletionLogprobs, second: CompletionLogprobs) -> CompletionLogprobs:
    return CompletionLogprobs(
        first.tokens + second.tokens,
        first.token_logprobs + second.token_logprobs,
        first.top_logprobs + second.top_logprobs,
        first.text_offset + second.text_offset,
    )


def prompt_logprobs(tokens: Sequence[TokenLogprobs | None], count: int, text: TokenText) -> list[dict[str, Any] | None]:
    """vLLM's shape: for each prompt token, token id → logprob, rank, text; of the `count` best and the token itself."""
    return [None if token is None else _by_id(token, count, text) for token in tokens]


def _by_id(token: TokenLogprobs, count: int, text: TokenText) -> dict[str, Any]:
    found = {token.token_id: (token.logprob, token.rank)}
    for rank, (token_id, logprob) in enumerate(token.top[:count], 1):
        found.setdefault(token_id, (logprob, rank))
    return {
        str(token_id): {"logprob": _finite(logprob), "rank": rank, "decoded_token": text.text(token_id)}
        for token_id, (logprob, rank) in found.items()
    }


def _finite(logprob: float) -> float:
    return max(logprob, _LOWEST)
