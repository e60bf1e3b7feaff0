"""The model's tokenizer, on the Rust `tokenizers` library and jinja2 alone.

transformers' AutoTokenizer would give the same ids but imports torch (half a gigabyte a server process); a test holds
the two equal. What transformers adds to tokenizer.json is done here: named special and added tokens, chat templates.
As there, tokenizer.json alone decides on BOS and EOS, whatever `add_bos_token` says.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as RustTokenizer

from thranite.errors import CheckpointError, InvalidRequest
from thranite.text.chat_template import ChatTemplate
from thranite.text.messages import Message
from thranite.text.token_bytes import TokenBytes
from thranite.text.tokenizer_files import TokenizerFiles, read_tokenizer_files


class Tokenizer:
    """Text to token ids and back. Immutable after construction and safe to call from many threads.

    `rust` is the wrapped tokenizer, for incremental decoding. `derived`: what others make of its vocabulary and keep
    for as long as it lives, also under another chat template.
    """

    def __init__(
        self,
        rust: RustTokenizer,
        special_tokens: Mapping[str, str] | None = None,
        chat_templates: Mapping[str, str] | None = None,
    ) -> None:
        rust.no_truncation()
        rust.no_padding()
        self.rust = rust
        self.derived: dict[Hashable, Any] = {}
        self.special_tokens = dict(special_tokens or {})
        self._templates = {
            name: ChatTemplate(source, self.special_tokens) for name, source in (chat_templates or {}).items()
        }

    @classmethod
    def load(cls, source: str | Path, revision: str | None = None) -> Tokenizer:
        """From a directory or hub id. Raises UnsupportedModel (no tokenizer.json), ModelNotFound or CheckpointError."""
        files = read_tokenizer_files(source, revision)
        try:
            rust = RustTokenizer.from_file(str(files.tokenizer_json))
        except Exception as error:  # the Rust library raises nothing narrower
            raise CheckpointError(f"{files.tokenizer_json} is not a tokenizer: {error}") from error
        _add_configured_tokens(rust, files)
        return cls(rust, files.special_tokens, files.templates)

    def with_chat_template(self, source: str) -> Tokenizer:
        """The same tokenizer with another chat template (jinja source), for chats with and without tools."""
        other = Tokenizer(self.rust, self.special_tokens, {"default": source})
        other.derived = self.derived
        return other

    @cached_property
    def vocab_size(self) -> int:
        """One more than the highest token id, added tokens included. A model's logits may be wider (padding)."""
        return max(self.rust.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @property
    def bos_token_id(self) -> int | None:
        return self._special_id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        return self._special_id("eos_token")

    def ends(self, model: tuple[int, ...], vocab_size: int) -> tuple[int, ...]:
        """The ids that end a text: the model's, and the tokenizer's own, which fine-tunes for chats often name in its
        files alone. As in vLLM."""
        own = self.eos_token_id
        return model if own is None or own in model or own >= vocab_size else (*model, own)

    def _special_id(self, name: str) -> int | None:
        text = self.special_tokens.get(name)
        return None if text is None else self.rust.token_to_id(text)

    @cached_property
    def specials(self) -> Mapping[int, str]:
        """The ids that decoding leaves out under skip_special_tokens, and their texts."""
        added = self.rust.get_added_tokens_decoder()
        return {token_id: token.content for token_id, token in added.items() if token.special}

    @cached_property
    def special_texts(self) -> frozenset[str]:
        return frozenset(self.specials.values())

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """As a batch of one: other than `encode`, the library's batches let go of the interpreter's lock meanwhile."""
        [encoding] = self.rust.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return encoding.ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Ids outside the vocabulary decode to nothing. As `encode`, a batch of one."""
        [text] = self.rust.decode_batch([ids], skip_special_tokens=skip_special_tokens)
        return text

    @cached_property
    def most_characters(self) -> int:
        """Of a text, that one token can stand for; composing normalizers (NFC) make one character of at most four."""
        longest = max(map(len, self.rust.get_vocab(with_added_tokens=True)), default=1)
        return longest if self.rust.normalizer is None else 4 * longest

    def token_bytes(self, token_id: int) -> bytes:
        """What one token stands for within a text: its leading space kept, parts of characters as they are."""
        return self._token_bytes[token_id]

    @cached_property
    def _token_bytes(self) -> TokenBytes:
        return TokenBytes(self.rust)

    def chat_template(self, tools: bool = False) -> ChatTemplate:
        """The template for chats (with tools, if the model has one of its own for them). InvalidRequest if none."""
        template = self._templates.get("tool_use") if tools else None
        template = template or self._templates.get("default")
        if template is None:
            raise InvalidRequest(
                "this model has no chat template: use /v1/completions, or start the server with --chat-template",
                "messages",
            )
        return template

    def apply_chat_template(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_special_tokens: bool = False,
        structured: bool = False,
        **chat_template_kwargs: Any,
    ) -> list[int]:
        """The prompt's token ids. Templates write their own BOS, hence `add_special_tokens` is off."""
        text = self.chat_template(tools=bool(tools)).render(
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
            kwargs=chat_template_kwargs,
            structured=structured,
        )
        return self.encode(text, add_special_tokens=add_special_tokens)

    def encode_bad_words(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Token sequences that spell the words, at the start of a text and after a space."""
        forms: dict[tuple[int, ...], None] = {}
        for word in words:
            plain = tuple(self.encode(word.lstrip(" "), add_special_tokens=False))
            spaced = tuple(self.encode(" " + word.lstrip(" "), add_special_tokens=False))
            if plain:
                forms[plain] = None
            # A spaced form that merely puts a space token before the plain one is covered by it.
            if spaced and (not plain or spaced[-len(plain) :] != plain):
                forms[spaced] = None
        return tuple(forms)


def _add_configured_tokens(rust: RustTokenizer, files: TokenizerFiles) -> None:
    """Tokens that tokenizer_config.json adds, and named special tokens that tokenizer.json does not mark as special."""
    known = rust.get_added_tokens_decoder()
    for index, spec in sorted((files.config.get("added_tokens_decoder") or {}).items(), key=lambda item: int(item[0])):
        if int(index) not in known:
            rust.add_tokens([_added_token(spec)])
    special = {token.content for token in rust.get_added_tokens_decoder().values() if token.special}
    extra = files.config.get("extra_special_tokens") or files.config.get("additional_special_tokens") or ()
    names = [*files.special_tokens.values(), *(token for token in extra if isinstance(token, str))]
    rust.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in names if text not in special])


def _added_token(spec: Mapping[str, Any]) -> AddedToken:
    flags = {name: spec[name] for name in ("single_word", "lstrip", "rstrip", "normalized", "special") if name in spec}
    return AddedToken(spec["content"], **flags)
