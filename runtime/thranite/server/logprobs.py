"""The engine's logprobs in the three shapes that the wire has for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from thranite.request import TokenLogprobs
from thranite.server.wire.chat import ChatLogprobs, ContentLogprob, TopLogprob
from thranite.server.wire.completion import CompletionLogprobs
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


class CompletionLogprobsWriter:
    """One sample's logprobs in the completions' shape, piece by piece: `text_offset` counts on over the pieces.

    `count`: alternatives shown; the engine may have found more for `prompt_logprobs`.
    """

    def __init__(self, text: TokenText, count: int) -> None:
        self._text = text
        self._count = count
        self._offset = 0

    def write(self, tokens: Sequence[TokenLogprobs]) -> CompletionLogprobs:
        piece = CompletionLogprobs([], [], [], [])
        for token in tokens:
            self._add(piece, token.token_id, _finite(token.logprob), self._top(token))
        return piece

    def write_prompt(self, ids: Sequence[int], tokens: Sequence[TokenLogprobs | None]) -> CompletionLogprobs:
        """An echoed prompt; its first token follows nothing, hence has no probability."""
        piece = CompletionLogprobs([], [], [], [])
        for token_id, token in zip(ids, tokens, strict=True):
            if token is None:
                self._add(piece, token_id, None, None)
            else:
                self._add(piece, token_id, _finite(token.logprob), self._top(token))
        return piece

    def _add(
        self, piece: CompletionLogprobs, token_id: int, logprob: float | None, top: dict[str, float] | None
    ) -> None:
        text = self._text.text(token_id)
        piece.tokens.append(text)
        piece.token_logprobs.append(logprob)
        piece.top_logprobs.append(top)
        piece.text_offset.append(self._offset)
        self._offset += len(text)

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
