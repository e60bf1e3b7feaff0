"""The exact bytes of single tokens, for logprobs: parts of characters included, leading spaces kept."""

from __future__ import annotations

import json
import re

from tokenizers import Tokenizer as RustTokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_of_char() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for characters from U+0100 on, in order."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


class TokenBytes(dict[int, bytes]):
    """Token id → bytes, computed once each. Ids outside the vocabulary give b''.

    Knows the two ways by which vocabularies spell bytes, byte-level (GPT-2) and byte fallback (sentencepiece); other
    tokenizers' tokens are decoded behind themselves, so that their leading space survives.
    """

    def __init__(self, rust: RustTokenizer) -> None:
        super().__init__()
        self._rust = rust
        decoder = json.loads(rust.decoder.__getstate__()) if rust.decoder is not None else {}
        self._kinds = _decoder_types(decoder)
        self._alphabet = _byte_of_char() if "ByteLevel" in self._kinds else {}
        self._added = {index: token.content for index, token in rust.get_added_tokens_decoder().items()}

    def __missing__(self, token_id: int) -> bytes:
        value = self[token_id] = self._compute(token_id)
        return value

    def _compute(self, token_id: int) -> bytes:
        if (added := self._added.get(token_id)) is not None:
            return added.encode()
        token = self._rust.id_to_token(token_id)
        if token is None:
            return b""
        if self._alphabet:
            known = all(char in self._alphabet for char in token)
            return bytes(self._alphabet[char] for char in token) if known else token.encode()
        if "ByteFallback" in self._kinds and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        return self._behind_itself(token_id).encode()

    def _behind_itself(self, token_id: int) -> str:
        """A text's first token may lose its leading space; the second does not."""
        alone = self._rust.decode([token_id], skip_special_tokens=False)
        return self._rust.decode([token_id, token_id], skip_special_tokens=False).removeprefix(alone)


def _decoder_types(decoder: dict[str, object]) -> set[str]:
    parts = decoder.get("decoders", [])
    inner = {kind for part in parts for kind in _decoder_types(part)} if isinstance(parts, list) else set()
    return inner | {str(decoder.get("type"))}
