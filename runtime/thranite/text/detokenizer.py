"""Text from tokens as they arrive.

A token's text depends on its neighbours (spaces, characters spread over tokens), so each step decodes a short window
twice: with and without the new tokens; the difference is new text. tokenizers' own DecodeStream does the same but stops
with an error where later bytes change what earlier ones decode to, repeats the prompt where that ends within a
character, and cannot flush (huggingface/tokenizers, vllm-project/vllm#17448, #48853).
"""

from __future__ import annotations

from collections.abc import Sequence

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
        self._window, self._context = self._prompt_window(prompt_token_ids)
        self._prefix = self._decode(self._window[: self._context])  # text given out already, or the prompt's
        self._held = 0  # tokens since text was last given out

    def step(self, token_id: int) -> str:
        """The text that is certain now: '' while a character is incomplete or the token has none."""
        self._window.append(token_id)
        self._held += 1
        text = self._decode(self._window)
        nothing_certain = text == self._prefix or text.endswith(_REPLACEMENT)
        return "" if nothing_certain and self._held < _MAX_HELD else self._take(text)

    def hold(self, token_ids: Sequence[int]) -> None:
        """Take tokens whose text may wait for `flush`."""
        self._window.extend(token_ids)
        self._held += len(token_ids)

    def flush(self) -> str:
        """What is left at the end, an incomplete character as U+FFFD."""
        return self._take(self._decode(self._window)) if self._held else ""

    def _prompt_window(self, prompt: Sequence[int]) -> tuple[list[int], int]:
        """The prompt's last tokens, and how many of them are whole characters.

        Neither end should cut a character: its first bytes would spoil the rest (byte fallback), its last ones belong
        to the output that completes it. A prompt without such ends (invalid bytes) is taken as it is.
        """
        for incomplete in range(_CHARACTER_BYTES):
            for length in range(_PROMPT_TAIL, _PROMPT_TAIL + _CHARACTER_BYTES):
                window = list(prompt[-length:])
                if _REPLACEMENT not in self._decode(window[: len(window) - incomplete]):
                    return window, max(len(window) - incomplete, 0)
        window = list(prompt[-_PROMPT_TAIL:])
        return window, len(window)

    def _take(self, text: str) -> str:
        """Give out what `text` adds to the prefix; the tokens that spelt it become the next context."""
        if text.startswith(self._prefix):
            new = text[len(self._prefix) :]
        else:  # byte fallback: a bad byte turned the bytes before it, given out as characters already, into U+FFFD
            new = self._decode(self._window[self._context :])
        self._window = self._window[self._context :]
        self._context = len(self._window)
        self._prefix = self._decode(self._window)
        self._held = 0
        return new

    def _decode(self, ids: Sequence[int]) -> str:
        return self._rust.decode(ids, skip_special_tokens=self._skip_special)
