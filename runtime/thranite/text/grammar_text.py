"""Texts that a grammar must not demand: those that the tokenizer reads as special tokens.

llguidance offers the special token where such a text is forced and then does not take it: a sequence could not go on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from thranite.errors import InvalidRequest
from thranite.sampling_params import StructuredOutputsParams
from thranite.text.tokenizer import Tokenizer


def refuse_special_text(wanted: StructuredOutputsParams, tokenizer: Tokenizer) -> None:
    """Raises InvalidRequest. Lark grammars may name special tokens, and are left alone."""
    special = [token.content for token in tokenizer.rust.get_added_tokens_decoder().values() if token.special]
    for text in _demanded(wanted):
        found = next((token for token in special if token in text), None)
        if found is not None:
            raise InvalidRequest(
                f"structured output cannot hold {found!r}, which is a special token of this model",
                "structured_outputs",
                "invalid_grammar",
            )


def _demanded(wanted: StructuredOutputsParams) -> Iterable[str]:
    if wanted.choice is not None:
        return wanted.choice
    if wanted.regex is not None:
        return [wanted.regex]
    if wanted.json is None:
        return ()
    return _fixed_texts(wanted.json)


def _fixed_texts(schema: Any) -> Iterator[str]:
    """What `enum`, `const` and names of properties demand, anywhere in a schema. Walks without recursion."""
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError):
            return  # its compilation says what is wrong
    places = [schema]
    while places:
        place = places.pop()
        if isinstance(place, list | tuple):
            places += place
        elif isinstance(place, dict):
            for key, value in place.items():
                yield str(key)
                if key in ("enum", "const"):
                    yield from _strings(value)
                else:
                    places.append(value)


def _strings(value: Any) -> Iterator[str]:
    places = [value]
    while places:
        place = places.pop()
        if isinstance(place, str):
            yield place
        elif isinstance(place, list):
            places += place
        elif isinstance(place, dict):
            places += [*place.keys(), *place.values()]
