"""Grammars in the engine: each sequence's constraint, compiled on a thread while its prompt is computed.

The last token of a prompt waits for its constraint (see the scheduler), so no other request waits for a compilation.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from typing import TYPE_CHECKING

from thranite.config import EngineConfig
from thranite.errors import ThraniteError
from thranite.models.spec import ModelSpec
from thranite.request import Grammar
from thranite.sampling_params import TokenParams

if TYPE_CHECKING:
    from thranite.text.grammar import GrammarCompiler, Matcher


logger = logging.getLogger(__name__)

_CONTRADICTED = "no token that the request's other parameters allow fits its grammar"
_OUTGROWN = "the grammar needs more than its parser has, and cannot be followed to its end"


class Grammars:
    """Implements `constraints.GrammarMaker`. Nothing is read or imported before the first grammar or `load`."""

    def __init__(self, tokenizer: str, revision: str | None, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        self._source, self._revision = tokenizer, revision
        self._vocab_size = vocab_size
        self._ends = eos_token_ids  # the tokenizer's, too, once that is read
        self._lock = threading.Lock()
        self._compiler: GrammarCompiler | None = None
        self._threads: ThreadPoolExecutor | None = None

    @classmethod
    def of(cls, config: EngineConfig, spec: ModelSpec) -> Grammars:
        return cls(*config.tokenizer_source, spec.vocab_size, spec.eos_token_ids)

    def constraint(self, grammar: Grammar, params: TokenParams) -> GrammarConstraint:
        matcher = self._kept(grammar.source) or self._submit(grammar.source)
        ends_on_eos = bool(params.eos_token_ids)
        return GrammarConstraint(matcher, self._vocab_size, lambda: self._ends, grammar.min_tokens, ends_on_eos)

    def _kept(self, source: str) -> Future[Matcher] | None:
        """Of a grammar that was compiled lately: the request waits for no thread."""
        matcher = None if self._compiler is None else self._compiler.kept(source)
        if matcher is None:
            return None
        done: Future[Matcher] = Future()
        done.set_result(matcher)
        return done

    def _submit(self, source: str) -> Future[Matcher]:
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(2, "grammar")
        return self._threads.submit(self._matcher, source)

    def load(self) -> None:
        """Read the vocabulary. Where that fails, requests with a grammar will be told why."""
        try:
            self._get_compiler().load()
        except ThraniteError as error:
            logger.warning("structured output is not available: %s", error)

    def _matcher(self, source: str) -> Matcher:
        return self._get_compiler().matcher(source)

    def _get_compiler(self) -> GrammarCompiler:
        from thranite.text.grammar import GrammarCompiler
        from thranite.text.tokenizer import Tokenizer

        with self._lock:
            if self._compiler is None:
                tokenizer = Tokenizer.load(self._source, self._revision)
                self._ends = tokenizer.ends(self._ends, self._vocab_size)
                self._compiler = GrammarCompiler(tokenizer, self._vocab_size, self._ends)
            return self._compiler


class GrammarConstraint:
    """Follows one sequence's text. The end-of-text tokens are allowed where the grammar may end.

    Before `min_tokens`, and for a request that ignores them, they are allowed only where the grammar must end. `ends`:
    those tokens, known once there is a matcher.
    """

    def __init__(
        self,
        matcher: Future[Matcher],
        vocab_size: int,
        ends: Callable[[], Collection[int]],
        min_tokens: int,
        ends_on_eos: bool,
    ) -> None:
        self.complete = False
        self.failure: str | None = None
        self._future = matcher
        self._mask_bytes = (vocab_size + 31) // 32 * 4
        self._ends = ends
        self._min_tokens, self._ends_on_eos = min_tokens, ends_on_eos
        self._tokens = 0
        self._mask = b""  # the grammar's own for the next token

    @property
    def ready(self) -> bool:
        return self._future.done()

    def wait(self, seconds: float) -> None:
        wait_for([self._future], seconds)

    def accept(self, token: int) -> None:
        matcher = self._ready()
        if matcher is None or self.complete:
            return
        self._tokens += 1
        if token in self._ends() and (matcher.is_stopped() or matcher.is_accepting()):
            self.complete = True
        elif not matcher.consume_token(token):
            self.failure = _reason(matcher, _OUTGROWN if self._allows(token) else _CONTRADICTED)

    def bitmask(self) -> bytes | None:
        matcher = self._ready()
        if matcher is None:
            return None
        # llguidance adds a word where the vocabulary fills the last
        mask = self._mask = matcher.compute_bitmask()[: self._mask_bytes]
        if matcher.is_error():
            self.failure = _reason(matcher, _OUTGROWN)
            return None
        if self._ends_on_eos and self._tokens >= self._min_tokens:
            return mask
        going_on = self._without_eos(mask)
        return going_on if any(going_on) else mask

    def _allows(self, token: int) -> bool:
        return len(self._mask) > token >> 3 and bool(self._mask[token >> 3] >> (token & 7) & 1)

    def _without_eos(self, mask: bytes) -> bytes:
        cleared = bytearray(mask)
        for token in self._ends():
            cleared[token >> 3] &= ~(1 << (token & 7)) & 0xFF
        return bytes(cleared)

    def _ready(self) -> Matcher | None:
        """The matcher, waited for; None after a failure."""
        if self.failure is None:
            try:
                return self._future.result()
            except ThraniteError as error:
                self.failure = str(error)
        return None


def _reason(matcher: Matcher, otherwise: str) -> str:
    detail = matcher.get_error().removesuffix("<non-verbose/>").strip() if matcher.is_error() else ""
    return f"{otherwise}: {detail}" if detail else otherwise
