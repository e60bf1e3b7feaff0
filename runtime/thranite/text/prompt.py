"""From a prompt and SamplingParams to an `EngineRequest`: tokens, truncation, early checks, bad words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from thranite.engine.client import EngineInfo
from thranite.errors import InvalidRequest
from thranite.request import EngineRequest, Grammar
from thranite.sampling_params import SamplingParams
from thranite.text.grammar import checked_source
from thranite.text.tokenizer import Tokenizer

ENDLESS_CHARACTERS = 64  # a token, where text need not fit: sixteen times what English has

Prompt = str | Sequence[int] | Mapping[str, Any]  # text, token ids, {"prompt": text} or {"prompt_token_ids": ids}


def as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """A single prompt (text, a mapping, or a list of token ids) becomes a list of one."""
    if isinstance(prompts, (str, Mapping)):
        return [prompts]
    many: list[Any] = list(prompts)
    return [many] if many and isinstance(many[0], int) else many


def text_of(prompt: Prompt) -> str | None:
    """None for token ids."""
    if isinstance(prompt, Mapping):
        prompt = prompt.get("prompt", ())
    return prompt if isinstance(prompt, str) else None


def tokenize_prompt(prompt: Prompt, tokenizer: Tokenizer | None, add_special_tokens: bool = True) -> Sequence[int]:
    """Token ids of a prompt in any of its forms."""
    if isinstance(prompt, Mapping):
        return tokenize_prompt(_unwrap(prompt), tokenizer, add_special_tokens)
    if not isinstance(prompt, str):
        return prompt
    if tokenizer is None:
        raise InvalidRequest(
            "this engine runs without a tokenizer: give the prompt as token ids", "prompt", "tokenizer_missing"
        )
    return tokenizer.encode(prompt, add_special_tokens=add_special_tokens)


def refuse_long_text(text: str, tokenizer: Tokenizer | None, info: EngineInfo, param: str = "prompt") -> None:
    """Refuse a text longer than the model's length in its longest tokens: finding its tokens takes over a hundred
    times its memory.

    A tokenizer that drops characters, or makes one token of many unknown ones, may have fewer tokens for a text than
    is assumed here: one that fits only for that reason is refused, too.
    """
    _refuse_characters(text, tokenizer, info, param, 1)


def refuse_endless_text(text: str, tokenizer: Tokenizer | None, info: EngineInfo, param: str = "prompt") -> None:
    """The bound of texts that are counted or cut, which need not fit: many times the model's length in common text,
    and never less than `refuse_long_text` takes."""
    _refuse_characters(text, tokenizer, info, param, ENDLESS_CHARACTERS)


def _refuse_characters(text: str, tokenizer: Tokenizer | None, info: EngineInfo, param: str, least: int) -> None:
    """Refuse more characters than max_model_len tokens of the longest token's, or `least`, characters each have."""
    if tokenizer is None or len(text) <= info.max_model_len * least:  # the vocabulary is read for long texts alone
        return
    most = info.max_model_len * max(least, tokenizer.most_characters)
    if len(text) > most:
        raise InvalidRequest(
            f"This model's maximum context length is {info.max_model_len} tokens, for which at most {most} characters "
            f"are taken; the text has {len(text)}. Please reduce its length.",
            param,
            "context_length_exceeded",
        )


def _unwrap(prompt: Mapping[str, Any]) -> str | Sequence[int]:
    unknown = prompt.keys() - {"prompt", "prompt_token_ids"}
    if unknown or len(prompt) != 1:
        raise InvalidRequest(
            f'a prompt is text, {{"prompt": text}} or {{"prompt_token_ids": ids}}; got keys {sorted(prompt)}', "prompt"
        )
    value: str | Sequence[int] = next(iter(prompt.values()))
    return value


def build_request(
    request_id: str,
    token_ids: Sequence[int],
    params: SamplingParams,
    info: EngineInfo,
    tokenizer: Tokenizer | None,
    *,
    seed: int,
    param: str = "prompt",
    strict_length: bool = False,
    priority: int = 0,
    timeout_seconds: float | None = None,
    cache_salt: str = "",
    known_ids: bool = False,
) -> EngineRequest:
    """Check everything that can be checked without the engine, and bind the parameters to prompt and model.

    `seed` serves requests that bring none. `param` is the field that errors about the prompt name. `strict_length`
    refuses a max_tokens that cannot be reached (OpenAI's way); otherwise it is cut to the room there is. `known_ids`:
    the caller found all ids to be the vocabulary's.
    """
    ids = tuple(token_ids if params.truncate_prompt_tokens is None else token_ids[-params.truncate_prompt_tokens :])
    output = params.max_tokens if strict_length and params.max_tokens is not None else 1
    check_prompt(ids, info, param, output=output, known_ids=known_ids)
    if params.n > info.max_num_seqs:
        raise InvalidRequest(f"n is {params.n}; this engine runs at most {info.max_num_seqs} sequences at once", "n")
    if tokenizer is None and (params.stop_strings or params.bad_words):
        field = "stop" if params.stop_strings else "bad_words"
        raise InvalidRequest(f"{field} needs text, and this engine runs without a tokenizer", field)
    ends = tokenizer.ends(info.eos_token_ids, info.vocab_size) if tokenizer else info.eos_token_ids
    bad_words = tokenizer.encode_bad_words(params.bad_words) if tokenizer and params.bad_words else ()
    resolved = params.resolve(
        prompt_len=len(ids),
        max_model_len=info.max_model_len,
        vocab_size=info.vocab_size,
        eos_token_ids=ends,
        bad_words=bad_words,
        seed=seed,
    )
    grammar = None
    if params.structured_outputs is not None:
        source = checked_source(params.structured_outputs, tokenizer, info.vocab_size, ends)
        grammar = Grammar(source, min(params.min_tokens, resolved.max_tokens))
    return EngineRequest(request_id, ids, resolved, priority, timeout_seconds, cache_salt, grammar)


def check_prompt(ids: tuple[int, ...], info: EngineInfo, param: str, *, output: int, known_ids: bool = False) -> None:
    """`output`: tokens of it that must fit behind the prompt."""
    if not ids:
        raise InvalidRequest("the prompt must hold at least one token", param)
    if not known_ids and (min(ids) < 0 or max(ids) >= info.vocab_size):
        wrong = next(token for token in ids if not 0 <= token < info.vocab_size)
        raise InvalidRequest(f"token id {wrong} is not in the vocabulary (0 to {info.vocab_size - 1})", param)
    if len(ids) + output <= info.max_model_len:
        return
    asked = f"{len(ids)} tokens"
    if output:
        asked = f"{len(ids) + output} tokens ({len(ids)} in the prompt, {output} in the completion)"
    raise InvalidRequest(
        f"This model's maximum context length is {info.max_model_len} tokens. However, you requested {asked}. "
        f"Please reduce the length of the prompt{' or the completion' if output else ''}.",
        param,
        "context_length_exceeded",
    )
