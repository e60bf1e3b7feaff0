"""What a caller asks of sampling (`SamplingParams`), and its token-level form for the engine (`TokenParams`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from thranite.errors import InvalidRequest
from thranite.plain_numbers import plain_float, plain_integer

MAX_LOGPROBS = 20
MAX_SEED = 2**64 - 1
HOTTEST = 1e30  # temperature: all tokens are level long before, and as an infinite fp32 it would make NaN of bans


Pooling = Literal["mean", "last"]  # of a prompt's final hidden states


@dataclass(frozen=True, slots=True)
class TokenParams:
    """Sampling parameters without text: all the engine and the sampler see. Made by `SamplingParams.resolve`.

    `seed` is always concrete. Sample i of a request draws from (seed, i, position) alone.
    """

    max_tokens: int
    seed: int
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()  # (): all
    bad_words: tuple[tuple[int, ...], ...] = ()  # token sequences that must not be completed
    eos_token_ids: tuple[int, ...] = ()  # () under ignore_eos
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    logprobs: int | None = None  # None: none; 0: the sampled token's alone; k: the k best besides
    prompt_logprobs: int | None = None
    pooling: Pooling | None = None  # the prompt's hidden states are wanted, not its continuation

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def penalized(self) -> bool:
        """Whether sampling reads the counts of earlier tokens."""
        return self.presence_penalty != 0.0 or self.frequency_penalty != 0.0 or self.repetition_penalty != 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputsParams:
    """What the output's text must be: exactly one of the first five fields is set.

    `json`: a JSON schema, as a mapping or as text. `grammar`: Lark or GBNF. `disable_any_whitespace` concerns JSON:
    without it the model may indent.
    """

    json: Mapping[str, Any] | str | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool = False
    disable_any_whitespace: bool = False

    def __post_init__(self) -> None:
        given = [item.name for item in fields(self)[:5] if getattr(self, item.name) not in (None, False)]
        if len(given) != 1:
            found = ", ".join(given) or "none"
            raise InvalidRequest(
                f"structured_outputs must set one of json, regex, choice, grammar, json_object; got {found}",
                "structured_outputs",
            )
        if self.choice is not None and (not self.choice or not all(self.choice)):
            raise InvalidRequest("choice must hold at least one text, and no empty one", "structured_outputs")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample one request. Field names and meanings are vLLM's, so that programs carry over."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] | None = None
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    include_stop_str_in_output: bool = False
    min_tokens: int = 0
    max_tokens: int | None = 16  # None: up to the model's length
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    detokenize: bool = True
    truncate_prompt_tokens: int | None = None  # keep only the last k prompt tokens
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    structured_outputs: StructuredOutputsParams | None = None

    def __post_init__(self) -> None:
        _make_plain(self)
        _check_ranges(self)
        if self.stop and not self.detokenize:
            raise InvalidRequest("stop strings need detokenize=true: without text there is nothing to match", "stop")
        if self.bad_words and any(not word for word in self.bad_words):
            raise InvalidRequest("bad_words must not contain an empty string", "bad_words")
        if any(not text for text in self.stop_strings):
            raise InvalidRequest("stop must not contain an empty string", "stop")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def resolve(
        self,
        *,
        prompt_len: int,
        max_model_len: int,
        vocab_size: int,
        eos_token_ids: tuple[int, ...],
        bad_words: tuple[tuple[int, ...], ...],
        seed: int,
    ) -> TokenParams:
        """Bind to one prompt and model.

        `bad_words` are the token forms of `self.bad_words`; those with a token that the tokenizer has and the model
        lacks are left out, as they can never be said. `seed` is used when the caller gave none.
        Raises InvalidRequest for token ids outside the vocabulary.
        """
        room = max(max_model_len - prompt_len, 0)
        for name in ("allowed_token_ids", "stop_token_ids"):
            _check_ids(name, getattr(self, name) or (), vocab_size)
        _check_ids("logit_bias", self.logit_bias or (), vocab_size)
        return TokenParams(
            n=self.n,
            temperature=min(self.temperature, HOTTEST),
            top_p=self.top_p,
            top_k=max(self.top_k, 0) if self.top_k < vocab_size else 0,
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            logit_bias=tuple((self.logit_bias or {}).items()),
            allowed_token_ids=tuple(self.allowed_token_ids or ()),
            bad_words=tuple(word for word in bad_words if max(word) < vocab_size),
            eos_token_ids=() if self.ignore_eos else eos_token_ids,
            stop_token_ids=tuple(self.stop_token_ids or ()),
            seed=self.seed if self.seed is not None else seed,
            # A grammar keeps it otherwise, see `Grammar`.
            min_tokens=0 if self.structured_outputs else min(self.min_tokens, room),
            max_tokens=room if self.max_tokens is None else min(self.max_tokens, room),
            logprobs=self.logprobs,
            prompt_logprobs=self.prompt_logprobs,
        )


def _check_ids(name: str, ids: Sequence[int] | Mapping[int, float], vocab_size: int) -> None:
    if len(ids) > vocab_size:
        raise InvalidRequest(f"{name} holds {len(ids)} ids; the vocabulary has {vocab_size}", name)
    for token in ids:
        if not 0 <= token < vocab_size:
            raise InvalidRequest(f"{name} holds token id {token}; the vocabulary is 0 to {vocab_size - 1}", name)


_INTEGERS = ("n", "top_k", "min_tokens")
_OPTIONAL_INTEGERS = ("seed", "max_tokens", "truncate_prompt_tokens", "logprobs", "prompt_logprobs")
_FLOATS = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")


def _make_plain(p: SamplingParams) -> None:
    """Numbers become Python's own. Once a request, so what already is is left alone."""
    for name in _INTEGERS:
        if type(value := getattr(p, name)) is not int:
            object.__setattr__(p, name, _integer(name, value))
    for name in _OPTIONAL_INTEGERS:
        if (value := getattr(p, name)) is not None and type(value) is not int:
            object.__setattr__(p, name, _integer(name, value))
    for name in _FLOATS:
        if type(value := getattr(p, name)) is not float:
            object.__setattr__(p, name, _float(name, value))
    for name in ("allowed_token_ids", "stop_token_ids"):
        if (value := getattr(p, name)) is not None:
            object.__setattr__(p, name, _ids(name, value))
    if p.logit_bias is not None:
        object.__setattr__(p, "logit_bias", _biases(p.logit_bias))


def _integer(name: str, value: Any, wish: str = "be an integer") -> int:
    try:
        return plain_integer(value)
    except TypeError as error:
        raise InvalidRequest(f"{name} must {wish}, got {value!r}", name) from error


def _float(name: str, value: Any, wish: str = "be a finite number") -> float:
    try:
        return plain_float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest(f"{name} must {wish}, got {value!r}", name) from error


def _ids(name: str, given: Any) -> Sequence[int]:
    if isinstance(given, list | tuple) and set(map(type, given)) <= {int}:
        return given
    if not isinstance(given, Iterable):
        raise InvalidRequest(f"{name} must be a list of token ids, got {given!r}", name)
    return tuple(_integer(name, token, "hold token ids") for token in given)


def _biases(given: Any) -> Mapping[int, float]:
    if not isinstance(given, Mapping):
        raise InvalidRequest(f"logit_bias must map token ids to numbers, got {given!r}", "logit_bias")
    if set(map(type, given)) <= {int} and set(map(type, given.values())) <= {float}:
        return given
    return {
        _integer("logit_bias", token, "map token ids"): _float("logit_bias", bias, "map to finite numbers")
        for token, bias in given.items()
    }


def _check_ranges(p: SamplingParams) -> None:
    def bound(name: str, ok: bool, want: str) -> None:
        if not ok:
            raise InvalidRequest(f"{name} must be {want}, got {getattr(p, name)!r}", name)

    for name in _FLOATS:
        bound(name, math.isfinite(getattr(p, name)), "a finite number")
    bound("n", p.n >= 1, "at least 1")
    bound("temperature", p.temperature >= 0.0, "0 (greedy) or more")
    bound("top_p", 0.0 < p.top_p <= 1.0, "above 0 and at most 1")
    bound("top_k", p.top_k >= -1, "-1 or 0 (off), or at least 1")
    bound("min_p", 0.0 <= p.min_p <= 1.0, "between 0 and 1")
    bound("presence_penalty", -2.0 <= p.presence_penalty <= 2.0, "between -2 and 2")
    bound("frequency_penalty", -2.0 <= p.frequency_penalty <= 2.0, "between -2 and 2")
    bound("repetition_penalty", p.repetition_penalty >= 1e-6, "at least 0.000001")
    bound("seed", p.seed is None or -(2**63) <= p.seed <= MAX_SEED, "a 64-bit integer")
    bound("max_tokens", p.max_tokens is None or p.max_tokens >= 1, "at least 1")
    bound("min_tokens", p.min_tokens >= 0, "at least 0")
    bound("min_tokens", p.max_tokens is None or p.min_tokens <= p.max_tokens, f"at most max_tokens ({p.max_tokens})")
    bound("logprobs", p.logprobs is None or 0 <= p.logprobs <= MAX_LOGPROBS, f"between 0 and {MAX_LOGPROBS}")
    bound(
        "prompt_logprobs",
        p.prompt_logprobs is None or 0 <= p.prompt_logprobs <= MAX_LOGPROBS,
        f"between 0 and {MAX_LOGPROBS}",
    )
    bound("truncate_prompt_tokens", p.truncate_prompt_tokens is None or p.truncate_prompt_tokens >= 1, "at least 1")
    for token, bias in (p.logit_bias or {}).items():
        if not (math.isfinite(bias) and -100.0 <= bias <= 100.0):
            raise InvalidRequest(
                f"logit_bias of token {token} must lie between -100 and 100, got {bias!r}", "logit_bias"
            )
