"""What a grammar must not demand: texts that the tokenizer reads as special tokens, and multiples of large numbers.

For the first llguidance offers the special token where such a text is forced and then does not take it: a sequence
could not go on. The others take it minutes to compile.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from decimal import Decimal
from typing import Any

from thranite.errors import InvalidRequest
from thranite.sampling_params import StructuredOutputsParams
from thranite.text.tokenizer import Tokenizer

MOST_REMAINDERS = 100_000


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


def refuse_costly_multiples(wanted: StructuredOutputsParams) -> None:
    """`multipleOf` becomes an automaton with a state for each remainder: 300,007 take 14 s, and of several in one place
    their least common multiple counts. Where they stand is not looked at: it is that of all. Raises InvalidRequest."""
    schemas = [wanted.json] if wanted.grammar is None else list(_schemas_within(wanted.grammar))
    common = 1
    for number in (number for schema in schemas for number in _multiples(schema)):
        common = math.lcm(common, number)
        if common > MOST_REMAINDERS:
            raise InvalidRequest(
                f"multipleOf: the least common multiple of all in the schema is above {MOST_REMAINDERS}, and the "
                "grammar would take too long to compile",
                "structured_outputs",
                "invalid_grammar",
            )


def _schemas_within(grammar: str) -> Iterator[Any]:
    """Of a grammar that is JSON itself, or has JSON schemas among its rules."""
    decoder = json.JSONDecoder()
    for start in [0, *(found.end() for found in re.finditer(r"%json\s*", grammar))]:
        with suppress(ValueError, RecursionError):  # its compilation says what is wrong
            yield decoder.raw_decode(grammar, start)[0]


def _multiples(schema: Any) -> Iterator[int]:
    """Of every `multipleOf`: as it is, or without its power of ten if it is large or a decimal."""
    for place in _places(_parsed(schema)):
        number = place.get("multipleOf") if isinstance(place, dict) else None
        if isinstance(number, bool) or not isinstance(number, int | float) or number == 0:
            continue  # none, or one that its compilation refuses
        if isinstance(number, int):
            yield abs(number) if abs(number) <= MOST_REMAINDERS else _without_zeros(abs(number))
        elif math.isfinite(number):
            yield int("".join(map(str, Decimal(repr(number)).normalize().as_tuple().digits)))


def _without_zeros(number: int) -> int:
    """Those at its end in decimal notation."""
    while number % 10 == 0:
        number //= 10
    return number


def _parsed(schema: Any) -> Any:
    if not isinstance(schema, str):
        return schema
    try:
        return json.loads(schema)
    except (ValueError, RecursionError):
        return None  # its compilation says what is wrong


def _places(value: Any) -> Iterator[Any]:
    """The value and all that is in it. Walks without recursion."""
    places = [value]
    while places:
        place = places.pop()
        yield place
        if isinstance(place, list | tuple):
            places += place
        elif isinstance(place, dict):
            places += place.values()


def _fixed_texts(schema: Any) -> Iterator[str]:
    """What `enum`, `const` and names of properties demand, anywhere in a schema. Walks without recursion."""
    places = [_parsed(schema)]
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
    for place in _places(value):
        if isinstance(place, str):
            yield place
        elif isinstance(place, dict):
            yield from place
