"""Text from tokens as they arrive.

A token's text depends on its neighbours (spaces, characters spread over tokens), so a short window is decoded twice:
with and without the new tokens; the difference is new text. tokenizers' DecodeStream does this in Rust, in 0.57 of
the time, as long as what it has given out stays a prefix. It stops with an error where later bytes change what
earlier ones decode to, repeats tokens that end within a character where it begins behind them, and cannot flush: there
`_give` decodes (huggingface/tokenizers, vllm-project/vllm#17448, #48853).
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers.decoders import DecodeStream

from thranite.text.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"
_PROMPT_TAIL = 6  # prompt tokens that decide how the first output token is spaced
_CHARACTER_BYTES = 4
_MAX_HELD = 16  # so many undecodable tokens never become one character


class Detokenizer:
    """One sequence's text. The pieces returned by `step` and `flush`, joined, are the decoded output."""

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], skip_special_tokens: bool) -> None:
        self._rust = tokenizer.rust
        self._skip_special = skip_special_tokens
        self._context, self._rest = self._prompt_window(prompt_token_ids)  # tokens: spelt already; not yet
        self._held = 0  # output tokens among the rest
        self._stream: DecodeStream | None = None  # has read context and rest; made by the first step that can

    def step(self, token_id: int) -> str:
        """The text that is certain now: '' while a character is incomplete or the token has none."""
        if self._stream is None and not self._rest:
            self._stream = self._new_stream()
        self._rest.append(token_id)
        self._held += 1
        if self._stream is None:
            certain = self._is_certain()
        else:
            try:
                piece = self._stream.step(self._rust, token_id)
            except Exception:  # noqa: BLE001 - tokenizers has no other: what it gave out is no prefix any more
                return self._give()
            if piece is not None:
                self._context, self._rest, self._held = self._rest, [], 0
                return piece
            certain = False
        return self._give() if certain or self._held >= _MAX_HELD else ""

    def hold(self, token_ids: Sequence[int]) -> None:
        """Take tokens whose text may wait for `flush`."""
        self._rest.extend(token_ids)
        self._held += len(token_ids)
        self._stream = None

    def flush(self) -> str:
        """What is left at the end, an incomplete character as U+FFFD."""
        return self._give() if self._held else ""

    def _prompt_window(self, prompt: Sequence[int]) -> tuple[list[int], list[int]]:
        """The prompt's last tokens that are whole characters, and those behind them.

        Neither end should cut a character: its first bytes would spoil the rest (byte fallback), its last ones belong
        to the output that completes it. A prompt without such ends (invalid bytes) is taken as it is.
        """
        for incomplete in range(_CHARACTER_BYTES):
            for length in range(_PROMPT_TAIL, _PROMPT_TAIL + _CHARACTER_BYTES):
                window = list(prompt[-length:])
                whole = max(len(window) - incomplete, 0)
                if _REPLACEMENT not in self._decode(window[:whole]):
                    return window[:whole], window[whole:]
        return list(prompt[-_PROMPT_TAIL:]), []

    def _new_stream(self) -> DecodeStream | None:
        """None where it would give out again what the context spells."""
        if self._decode(self._context).endswith(_REPLACEMENT):
            return None
        return DecodeStream(ids=self._context, skip_special_tokens=self._skip_special)

    def _is_certain(self) -> bool:
        text = self._decode(self._context + self._rest)
        return not text.endswith(_REPLACEMENT) and text != self._decode(self._context)

    def _give(self) -> str:
        """Give out what the rest adds to the context; it becomes the next context."""
        before, text = self._decode(self._context), self._decode(self._context + self._rest)
        if text.startswith(before):
            new = text[len(before) :]
        else:  # byte fallback: a bad byte turned the bytes before it, given out as characters already, into U+FFFD
            new = self._decode(self._rest)
        self._context, self._rest, self._held, self._stream = self._rest, [], 0, None
        return new

    def _decode(self, ids: Sequence[int]) -> str:
        return self._rust.decode(ids, skip_special_tokens=self._skip_special)
