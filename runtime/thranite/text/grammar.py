"""Grammars: what a request asks for in llguidance's notation, and matchers that follow a text token by token.

llguidance is looked up by name at the first use, because an engine without structured output runs without it.
"""

from __future__ import annotations

import importlib
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Protocol

from thranite.errors import InvalidRequest
from thranite.sampling_params import StructuredOutputsParams
from thranite.text.deep_stack import on_deep_stack
from thranite.text.grammar_text import refuse_costly_multiples, refuse_special_text
from thranite.text.tokenizer import Tokenizer

FIELD = "structured_outputs"
KEPT = 128  # compiled grammars
_MASK_SECONDS = 0.25  # of a processor, for the first token: every other sequence waits for it
_MAX_SOURCE = 2**19  # characters; chains of rules so long take 210 MB of stack
_MAX_ROW_ITEMS = 2**15  # of the parser; a property that may come next takes four, and the library's limit is 2,000


class Matcher(Protocol):
    """Of llguidance's LLMatcher what is used here. Once `is_error`, for ever."""

    def is_error(self) -> bool: ...
    def get_error(self) -> str: ...
    def is_accepting(self) -> bool:
        """Whether the text may end here."""
        ...

    def is_stopped(self) -> bool:
        """Whether it must."""
        ...

    def consume_token(self, token: int) -> bool: ...
    def compute_bitmask(self) -> bytes: ...
    def deep_copy(self) -> Matcher: ...


def grammar_source(wanted: StructuredOutputsParams) -> str:
    """In llguidance's notation; whether it compiles is another question. Raises InvalidRequest for what is no JSON."""
    library = _library()
    try:
        if wanted.json is not None or wanted.json_object:
            schema = {"type": "object"} if wanted.json is None else wanted.json
            text = schema if isinstance(schema, str) else json.dumps(schema)
            text = "{}" if text.strip() == "true" else text  # the same, and options may be added to it
            overrides = {"whitespace_flexible": False} if wanted.disable_any_whitespace else None
            return str(library.LLMatcher.grammar_from_json_schema(text, overrides=overrides))
        if wanted.choice is not None:
            texts = " | ".join(json.dumps(text, ensure_ascii=False) for text in wanted.choice)
            return f"start: CHOICE\nCHOICE: {texts}"  # as one terminal: a rule would keep an item for every text
        if wanted.regex is not None:
            return str(library.LLMatcher.grammar_from_regex(wanted.regex))
        if (wanted.grammar or "").startswith("%llguidance"):
            return str(wanted.grammar)  # Lark for certain
        return str(library.grammar_from("grammar", wanted.grammar))
    except (ValueError, TypeError) as error:
        raise InvalidRequest(f"the grammar cannot be compiled: {error}", FIELD, "invalid_grammar") from error


def checked_source(
    wanted: StructuredOutputsParams, tokenizer: Tokenizer | None, vocab_size: int, eos_token_ids: Sequence[int]
) -> str:
    """`grammar_source`, proved to compile for this vocabulary. Raises InvalidRequest with the reason."""
    if tokenizer is None:
        raise InvalidRequest("this engine runs without a tokenizer, which structured_outputs needs", FIELD)
    refuse_special_text(wanted, tokenizer)
    refuse_costly_multiples(wanted)
    source = grammar_source(wanted)
    if len(source) > _MAX_SOURCE:
        raise InvalidRequest(f"the grammar takes {len(source)} characters; at most {_MAX_SOURCE} are allowed", FIELD)
    matcher = _compiler_of(tokenizer, vocab_size, tuple(eos_token_ids)).matcher(source)
    began = time.thread_time()
    matcher.compute_bitmask()
    if time.thread_time() - began > _MASK_SECONDS:
        raise InvalidRequest(
            "the grammar takes too long for each token: let it have fewer choices", FIELD, "invalid_grammar"
        )
    if matcher.is_error():  # such as a schema that refers to itself alone
        raise InvalidRequest(f"no text can match the grammar: {matcher.get_error().strip()}", FIELD, "invalid_grammar")
    return source


def load_vocabulary(tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
    """What the first `checked_source` would wait for. Raises InvalidRequest where no grammar can be followed."""
    _compiler_of(tokenizer, vocab_size, tuple(eos_token_ids)).load()


def _compiler_of(tokenizer: Tokenizer, vocab_size: int, eos_token_ids: tuple[int, ...]) -> GrammarCompiler:
    """One a vocabulary, as long as its tokenizer lives."""
    key = (GrammarCompiler, vocab_size, eos_token_ids)
    with _compilers_lock:
        if key not in tokenizer.derived:
            tokenizer.derived[key] = GrammarCompiler(tokenizer, vocab_size, eos_token_ids)
        compiler: GrammarCompiler = tokenizer.derived[key]
        return compiler


class GrammarCompiler:
    """Makes matchers over one vocabulary. Safe to call from many threads; the vocabulary is read at the first call."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._rust, self._vocab_size = tokenizer.rust, vocab_size
        self._eos = list(eos_token_ids)
        self._lock = threading.Lock()
        self._vocabulary: Any = None
        self._compiled: OrderedDict[str, Matcher] = OrderedDict()

    def matcher(self, source: str) -> Matcher:
        """A fresh matcher. Raises InvalidRequest if the grammar does not compile."""
        with self._lock:
            vocabulary = self._read_vocabulary()
            found = self._copy(source)
        if found is not None:
            return found
        matcher = on_deep_stack(lambda: _compile(vocabulary, source))
        with self._lock:
            self._compiled[source] = matcher
            if len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
            return matcher.deep_copy()

    def kept(self, source: str) -> Matcher | None:
        """A fresh matcher of a grammar that was compiled lately; None also where that is not known at once."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            return self._copy(source)
        finally:
            self._lock.release()

    def _copy(self, source: str) -> Matcher | None:
        """With the lock."""
        found = self._compiled.get(source)
        if found is None:
            return None
        self._compiled.move_to_end(source)
        return found.deep_copy()

    def load(self) -> None:
        """Read the vocabulary now: it takes about a second for 100,000 tokens."""
        with self._lock:
            self._read_vocabulary()

    def _read_vocabulary(self) -> Any:
        if self._vocabulary is None:
            if not self._eos:
                raise InvalidRequest("this model names no end-of-text token, which structured_outputs needs", FIELD)
            try:
                self._vocabulary = _library().LLTokenizer(
                    self._rust.to_str(), n_vocab=self._vocab_size, eos_token=self._eos
                )
            except ValueError as error:
                raise InvalidRequest(f"this model's tokenizer cannot follow grammars: {error}", FIELD) from error
        return self._vocabulary


_compilers_lock = threading.Lock()


def _compile(vocabulary: Any, source: str) -> Matcher:
    library = _library()
    limits = library.LLParserLimits(verbose_errors=False, max_items_in_row=_MAX_ROW_ITEMS)
    matcher: Matcher = library.LLMatcher(vocabulary, source, log_level=0, limits=limits)
    if matcher.is_error():
        reason = matcher.get_error().strip()
        raise InvalidRequest(f"the grammar cannot be compiled: {reason}", FIELD, "invalid_grammar")
    return matcher


def _library() -> Any:
    try:
        return importlib.import_module("llguidance")
    except ModuleNotFoundError as error:
        raise InvalidRequest(
            "structured_outputs needs the package llguidance, which is not installed", FIELD
        ) from error
