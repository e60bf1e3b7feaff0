"""A grammar for answers that must be tool calls, in the notation that the model's parser reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from thranite.sampling_params import StructuredOutputsParams
from thranite.text.tokenizer import Tokenizer
from thranite.text.tools.calls import HermesCalls, MistralCalls

Function = Mapping[str, Any]  # name and, if it has any, parameters: a JSON schema


def forced_calls(
    notation: str, functions: Sequence[Function], tokenizer: Tokenizer, *, several: bool
) -> StructuredOutputsParams:
    """One call of one of `functions`, or `several` in a row."""
    template = tokenizer.chat_template(tools=True).source
    if notation == "mistral" and MistralCalls.ARGS in template:
        rules = _named_rules(functions, several, tokenizer)
    else:
        rules = _object_rules(notation, functions, several, tokenizer)
    arguments = [f"args_{i}: %json {_schema(function)}" for i, function in enumerate(functions)]
    return StructuredOutputsParams(grammar="\n".join(["%llguidance {}", *rules, *arguments]))


def _object_rules(notation: str, functions: Sequence[Function], several: bool, tokenizer: Tokenizer) -> list[str]:
    key = "parameters" if notation == "llama3_json" else "arguments"
    heads = [f'{{"name": {json.dumps(function["name"])}, "{key}": ' for function in functions]
    calls = [f"call_{i}: {_quoted(head)} args_{i} {_quoted('}')}" for i, head in enumerate(heads)]
    any_call = "any_call: " + " | ".join(f"call_{i}" for i in range(len(functions)))
    return [*_frames(notation, several, tokenizer), any_call, *calls]


def _frames(notation: str, several: bool, tokenizer: Tokenizer) -> list[str]:
    """The start rule, and what stands around each call."""

    def row(item: str, between: str) -> str:
        return f"{item} ({_quoted(between)} {item})*" if several else item

    newline = "\n"
    if notation == "hermes":
        begin, end = _token(HermesCalls.OPEN, tokenizer), _token(HermesCalls.CLOSE, tokenizer)
        return [
            f"start: {row('framed', newline)}",
            f"framed: {begin} {_quoted(newline)} any_call {_quoted(newline)} {end}",
        ]
    if notation == "mistral":
        return [f"start: {_token(MistralCalls.TAG, tokenizer)} {_quoted('[')} {row('any_call', ', ')} {_quoted(']')}"]
    return [f"start: {row('any_call', '; ')}"]


def _named_rules(functions: Sequence[Function], several: bool, tokenizer: Tokenizer) -> list[str]:
    tag, args = _token(MistralCalls.TAG, tokenizer), _token(MistralCalls.ARGS, tokenizer)
    calls = [f"call_{i}: {tag} {_quoted(function['name'])} {args} args_{i}" for i, function in enumerate(functions)]
    any_call = " | ".join(f"call_{i}" for i in range(len(functions)))
    return [f"start: any_call{'+' if several else ''}", f"any_call: {any_call}", *calls]


def _schema(function: Function) -> str:
    parameters = function.get("parameters") or {}
    return json.dumps({"type": "object", **parameters})


def _token(tag: str, tokenizer: Tokenizer) -> str:
    """A tag that is a token of its own by its id, else by its text."""
    token = tokenizer.rust.token_to_id(tag)
    return _quoted(tag) if token is None else f"<[{token}]>"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
